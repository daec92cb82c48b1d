"""The ``capacity --json`` document, and its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.numbers import counted, short, short_beside
from policies.report import finite
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.capacity.live import LiveCapacity
from tuner.capacity.probe import Probe
from tuner.capacity.search import CLIFF_LOAD, Capacity
from tuner.workload.workload import Workload

SCHEMA = "capacity/v1"


def capacity_json(
    found: Capacity,
    *,
    workload: Workload,
    sla: Sla,
    settings: Settings | None,
    seed: int,
    title: str,
    origin: dict[str, Any],
    fidelity: Fidelity = Fidelity.SIMULATED,
    warnings: Sequence[str] = (),
    is_interrupted: bool = False,
) -> dict[str, Any]:
    """The answer as a JSON value; simulated ones have no wall times, so equal inputs give equal
    bytes.

    ``settings`` None: those of a server that does not tell. ``origin`` says where step times and
    memory come from, or which server was driven.
    """
    return {
        "schema": SCHEMA,
        "title": title,
        "gearshift": version("gearshift"),
        "fidelity": fidelity.value,
        "sla": str(sla),
        "min_probability": MIN_CHANCE,
        "asked": load_json(workload, 1.0),
        "capacity": answer_json(found, workload),
        "is_interrupted": is_interrupted,
        "rates": [
            _rate_json(workload, sla, [p for p in found.probes if p.factor == factor])
            for factor in sorted({p.factor for p in found.probes})
        ],
        "settings": None if settings is None else settings.to_json(),
        "seed": seed,
        "workload": workload.describe(),
        **origin,
        "warnings": list(warnings),
    }


def answer_json(found: Capacity, workload: Workload) -> dict[str, Any]:
    """The highest load, its interval, what binds there, and whether it is a cliff."""
    cliff = found.cliff
    return {
        "load": None if found.factor is None else load_json(workload, found.factor),
        "low": None if found.low is None else load_json(workload, found.low),
        "high": None if found.high is None else load_json(workload, found.high),
        "is_at_least": found.is_at_least,
        "carries_asked": found.factor is not None and found.factor >= 1,
        "binding": None if found.binding is None else str(found.binding),
        "cliff": None
        if cliff is None
        else {
            "is_cliff": cliff.is_cliff,
            "within": CLIFF_LOAD,
            "attainment": cliff.attainment,
            "attainment_above": cliff.attainment_above,
        },
    }


def live_json(live: LiveCapacity, workload: Workload) -> dict[str, Any]:
    """How long a server was driven, and what the driver itself failed to do."""
    undrivable = live.undrivable
    return {
        "seconds": live.seconds,
        "late_probes": [
            {
                **load_json(workload, late.factor),
                "requests": late.num_requests,
                "driver_lag_p99_ms": late.lag_ms,
            }
            for late in live.late
        ],
        "undrivable_load": None if undrivable is None else load_json(workload, undrivable),
    }


def live_lines(document: dict[str, Any]) -> list[str]:
    """What the driver itself could not do, for people."""
    live, lines = document["live"], []
    if count := len(live["late_probes"]):
        lines.append(f"{count} probes do not count: this machine sent them late")
    if (load := live["undrivable_load"]) is not None:
        lines.append(
            f"from {load_text(load)} on this machine is too slow to send: drive from another one"
        )
    return lines


def load_json(workload: Workload, factor: float) -> dict[str, Any]:
    """A load as a factor of the workload's, and as requests per second or clients."""
    closed, rate = workload.closed, workload.rate_rps
    return {
        "factor": factor,
        "rate_rps": None if closed is not None or rate is None else factor * rate,
        "concurrency": None if closed is None else max(1, round(factor * closed.concurrency)),
    }


def load_text(load: dict[str, Any]) -> str:
    """A load in words."""
    if load["concurrency"] is not None:
        return counted(load["concurrency"], "client")
    return f"{short(load['rate_rps'])} requests/s"


def capacity_lines(document: dict[str, Any]) -> list[str]:
    """The answer for people."""
    answer, sla = document["capacity"], document["sla"]
    if answer["load"] is None:
        if not document["rates"]:
            way_out = "" if document.get("is_interrupted") else " in time: take longer (--seconds)"
            return [f"no probe came to its end{way_out}"]
        least = document["rates"][0]
        if document.get("is_interrupted"):
            return [f"not known yet: {sla} is missed at {load_text(least)}, by {_by(answer)}"]
        if answer["binding"] is not None and _meets(least, sla):
            return [
                f"no load meets {sla} with P of at least {document['min_probability']:g}: at "
                f"{load_text(least)} its bounds are met, but with P {least['sla_probability']:.2f} "
                f"only; binding is {_by(answer)}"
            ]
        return [
            f"no load meets {sla}: it is missed at {load_text(least)} already, by {_by(answer)}"
        ]
    at_least = "at least " if answer["is_at_least"] else ""
    chance = f"with P of at least {document['min_probability']:g}"
    first = f"capacity: {at_least}{load_text(answer['load'])} within {sla} {chance}"
    if answer["high"] is not None:
        first += f" (90 % interval {load_text(answer['low'])} to {load_text(answer['high'])})"
    lines = [first, f"asked: {_asked(document['asked'])}, {_way(document)}"]
    if document.get("is_interrupted") and (missed := _least_missed(document)) is not None:
        lines.append(f"missed: {load_text(missed)}; what lies between was not looked at yet")
    if answer["binding"] is not None:
        lines.append(f"binding: {answer['binding']}")
    if (cliff := answer["cliff"]) is not None:
        word = "a cliff" if cliff["is_cliff"] else "no cliff"
        # P counts on slow steps too, so all may meet their bounds beyond the capacity.
        steps = "with steps as fast as foreseen " if document["fidelity"] == "simulated" else ""
        more = "load" if answer["load"]["concurrency"] is None else "clients, or one more"
        lines.append(
            f"{word}: {steps}{_percent(cliff['attainment'])} of the requests meet their bounds at "
            f"the capacity, {_percent(cliff['attainment_above'])} with 10 % more {more}"
        )
    return lines


def _percent(share: float) -> str:
    """A share in percent; what is nearly all is not told as all of it."""
    text = f"{100 * share:.1f}"
    return f"{short_beside(100 * share, 100.0) if share < 1 and text == '100.0' else text} %"


def _asked(load: dict[str, Any]) -> str:
    """The load of the workload as it was drawn, whose rate is not quite the one that was named."""
    drawn = "" if load["rate_rps"] is None else " as the arrivals came"
    return load_text(load) + drawn


def _way(document: dict[str, Any]) -> str:
    """Whether the load as asked is carried, as far as that is known."""
    answer = document["capacity"]
    share = f"(capacity is {100 * answer['load']['factor']:.0f} % of it)"
    if answer["carries_asked"]:
        return f"carried {share}"
    missed = _least_missed(document)
    if document.get("is_interrupted") and (missed is None or missed["factor"] > 1):
        return "not known yet whether it is carried"
    return f"above what it carries {share}"


def _least_missed(document: dict[str, Any]) -> dict[str, Any] | None:
    """The least load that was looked at and is not carried."""
    least = document["min_probability"]
    return next((rate for rate in document["rates"] if rate["sla_probability"] < least), None)


def _meets(rate: dict[str, Any], sla: str) -> bool:
    """Whether the values of a load are within all bounds, however likely they are again."""
    found = [(c, rate["metrics"].get(c.key)) for c in Sla.parse(sla).per_run]
    return all(value is not None and c.is_met_by(value) for c, value in found)


def _by(answer: dict[str, Any]) -> str:
    return answer["binding"] or "requests that fail"


def _rate_json(workload: Workload, sla: Sla, probes: list[Probe]) -> dict[str, Any]:
    """Means over the draws probed at one rate, and the least and most of their intervals; None
    where JSON has no number."""
    keys = [c.key for c in sla.per_run]
    return {
        **load_json(workload, probes[0].factor),
        "draws": len(probes),
        "requests": sum(p.num_requests for p in probes),
        "sla_probability": float(np.mean([p.chance for p in probes])),
        "attainment": float(np.mean([p.attainment for p in probes])),
        "metrics": {
            key: finite(float(np.mean([p.point.metrics[key].value for p in probes])))
            for key in keys
            if all(key in p.point.metrics for p in probes)
        },
        "ends": {
            key: {
                "low": finite(min(p.point.metrics[key].low for p in probes)),
                "high": finite(max(p.point.metrics[key].high for p in probes)),
            }
            for key in keys
            if all(key in p.point.metrics for p in probes)
        },
    }
