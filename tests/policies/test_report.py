"""The JSON documents of bench and simulate."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from engine.spec.energy import EnergyUse
from engine.spec.measurement import METRIC_IDS
from policies.attainment import judge
from policies.report import energy_text, finite, flat_metrics, measurement_json, sla_json
from policies.sla import Sla
from tests.policies.runs import failed, run, timing

SLA = Sla.parse("p95_ttft_ms<=150,attainment>=0.9")


def test_the_document_has_exactly_the_shape_other_programs_rely_on() -> None:
    document = json.loads(
        json.dumps(measurement_json(run([timing(), failed()]), SLA), allow_nan=False)
    )
    assert set(document) == {
        "fidelity",
        "metrics",
        "requests",
        "driver_lag_ms",
        "driver_lag",
        "metric_ids",
        "energy",
    }
    assert document["energy"] is None
    assert document["fidelity"] == "measured"
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert set(document["metrics"][name]) == {"mean", "p50", "p90", "p95", "p99"}
    assert document["metrics"]["attainment"] == 0.5
    assert document["requests"] == {"completed": 1, "errored": 1, "timed_out": 0, "cut": 0}
    assert document["driver_lag_ms"] == document["driver_lag"]["p99"]
    assert set(document["metric_ids"]) == set(METRIC_IDS) == set(document["metrics"])


def test_what_was_not_observed_is_none_and_not_zero() -> None:
    metrics = measurement_json(run([failed()]), SLA)["metrics"]
    assert metrics["attainment"] == 0.0
    assert metrics.pop("attainment") is not None
    values = [v for m in metrics.values() for v in (m.values() if isinstance(m, dict) else [m])]
    assert values == [None] * len(values)


def test_measured_energy_is_told_per_token_of_completed_requests() -> None:
    measured = run([timing(tokens=5), timing(tokens=5), failed()])
    energy = EnergyUse(joules=600.0, seconds=2.0, num_devices=2)
    document = measurement_json(replace(measured, energy=energy), None)["energy"]
    assert document["mean_w"] == 300.0
    assert document["joules_per_output_token"] == 60.0
    assert document["joules_per_total_token"] == 600.0 / (10 + 2 * 20)
    assert energy_text(document) == (
        "energy (measured): 600 J, mean 300 W of 2 devices, 60 J per output token, "
        "12 J per total token"
    )


def test_without_an_sla_there_is_no_attainment_to_tell() -> None:
    metrics = measurement_json(run([timing()]), None)["metrics"]
    assert metrics["attainment"] is None
    assert metrics["goodput_rps"] is None
    assert metrics["throughput_tokens_per_s"] > 0


def test_flat_metrics_use_the_words_of_the_sla_and_leave_out_what_is_missing() -> None:
    flat = flat_metrics(run([timing(tokens=1)]), SLA)
    assert flat["p95_ttft_ms"] == flat["mean_ttft_ms"]
    assert flat["attainment"] == 1.0
    assert not any(key.endswith("_tpot_ms") for key in flat)


def test_a_percentile_among_failed_requests_is_infinite_and_not_the_survivors() -> None:
    broken = run([timing()] * 5 + [failed()] * 5)
    assert flat_metrics(broken)["p95_ttft_ms"] == pytest.approx(100)
    assert flat_metrics(broken, SLA)["p95_ttft_ms"] == math.inf
    assert finite(math.inf) is finite(math.nan) is finite(None) is None


def test_an_sla_report_says_what_failed_in_valid_json() -> None:
    document = sla_json(SLA, judge(SLA, run([failed()] * 3)))
    json.dumps(document, allow_nan=False)
    assert not document["is_met"]
    assert [v["constraint"] for v in document["violations"]] == [
        "p95_ttft_ms<=150",
        "attainment>=0.9",
    ]
