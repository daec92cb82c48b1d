"""The JSON documents that other programs rely on, made from a measurement and an SLA."""

from __future__ import annotations

import math
from typing import Any

from engine.spec.measurement import METRIC_IDS, Distribution, Measurement, Outcome
from policies.attainment import SlaReport, judge
from policies.numbers import counted, share_text, short
from policies.sla import Sla

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
RATES = ("throughput_tokens_per_s", "throughput_total_tokens_per_s")


def measurement_json(measurement: Measurement, sla: Sla | None) -> dict[str, Any]:
    """The ``simulate --json`` / ``bench --json`` document, with null for what was not observed.

    ``energy`` is what the devices' driver measured, per token too, and None without one.
    ``goodput_rps`` and ``attainment`` need an SLA. ``driver_lag_ms`` is the p99, ``driver_lag``
    its whole distribution; ``metric_ids`` names the definition behind each number.
    """
    is_observed = measurement.window_s > 0
    report = judge(sla, measurement) if sla else None
    metrics: dict[str, Any] = {name: getattr(measurement, name).to_json() for name in LATENCIES}
    metrics |= {name: getattr(measurement, name) if is_observed else None for name in RATES}
    metrics["goodput_rps"] = report.goodput_rps if report and is_observed else None
    metrics["attainment"] = report.attainment if report else None
    return {
        "fidelity": measurement.fidelity.value,
        "metrics": metrics,
        "requests": {outcome.value: measurement.count(outcome) for outcome in Outcome},
        "driver_lag_ms": measurement.driver_lag_ms.p99,
        "driver_lag": measurement.driver_lag_ms.to_json(),
        "metric_ids": dict(METRIC_IDS),
        "energy": _energy_json(measurement),
    }


def _energy_json(measurement: Measurement) -> dict[str, Any] | None:
    if measurement.energy is None:
        return None
    return measurement.energy.to_json(
        output_tokens=measurement.output_tokens, total_tokens=measurement.total_tokens
    )


def energy_text(energy: dict[str, Any]) -> str:
    """One line of what :func:`measurement_json` has of energy."""
    each = [
        f"{short(energy[f'joules_per_{kind}_token'])} J per {kind} token"
        for kind in ("output", "total")
        if energy[f"joules_per_{kind}_token"] is not None
    ]
    devices = counted(energy["num_devices"], "device")
    whole = f"{short(energy['joules'])} J, mean {energy['mean_w']:.0f} W of {devices}"
    return ", ".join([f"energy (measured): {whole}", *each])


def flat_metrics(measurement: Measurement, sla: Sla | None = None) -> dict[str, float]:
    """Every observed number by the name an SLA gives it: ``p95_ttft_ms``, ``attainment``, ...

    What was not observed is left out: missing is not zero. With an SLA, a bounded percentile is
    infinite if it falls among failed requests; pass values through :func:`finite` for JSON.
    """
    flat: dict[str, float | None] = {}
    for name in LATENCIES:
        distribution: Distribution = getattr(measurement, name)
        flat |= {f"{key}_{name}": value for key, value in distribution.to_json().items()}
    if measurement.window_s > 0:
        flat |= {name: getattr(measurement, name) for name in RATES}
    if sla is not None:
        report = judge(sla, measurement)
        flat |= {"attainment": report.attainment}
        flat |= {"goodput_rps": report.goodput_rps if measurement.window_s > 0 else None}
        # For an SLA, failed requests count too.
        flat |= {c.constraint.key: c.actual for c in report.checks if c.is_applicable}
    return {name: value for name, value in flat.items() if value is not None}


def sla_json(sla: Sla, report: SlaReport) -> dict[str, Any]:
    """How a run stands against its SLA, for reports and decisions."""
    return {
        "sla": str(sla),
        "is_met": report.is_met,
        "attainment": report.attainment,
        "goodput_rps": report.goodput_rps,
        "headroom": finite(report.headroom),
        "violations": [
            {"constraint": str(v.constraint), "actual": finite(v.actual)} for v in report.violations
        ],
        "invalid": report.invalid,
        "not_applicable": dict(report.not_applicable),
    }


def judged_lines(sla: Sla, report: SlaReport) -> list[str]:
    """The same in words: the verdict, and how many requests met their bounds."""
    attainment = "-" if report.attainment is None else share_text(report.attainment)
    goodput = "-" if report.goodput_rps is None else short(report.goodput_rps)
    return [
        f"SLA {sla}: {report.verdict}",
        f"attainment {attainment}, goodput {goodput} requests/s",
    ]


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it (infinite, not a number)."""
    return value if value is not None and math.isfinite(value) else None
