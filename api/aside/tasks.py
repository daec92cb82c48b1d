"""The pieces of work, by name. Each takes JSON and gives JSON.

A piece imports what it needs when it is asked for, because the child lives for one of them only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
# Facts of a SPEC and its seed; a kept trace has neither.
OF_A_SPEC = ("spec", "seed", "scale", "input_scale", "output_scale", "concurrency")


def read_trace(question: Json) -> Json:
    """Format and facts of the trace file at ``path``, read as ``form``."""
    from tuner.workload.parse import parse_workload
    from tuner.workload.trace_file import TraceFile
    from tuner.workload.traces import reader_for
    from tuner.workload.workload import over_time

    path = Path(question["path"])
    form = reader_for(question["form"], TraceFile.open_head(path)).word
    workload = parse_workload(f"{form}:{path}", seed=0)
    facts = {k: v for k, v in workload.describe().items() if k not in OF_A_SPEC}
    return {"form": form, "facts": {**facts, "over_time": over_time(workload.arrival_s)}}


def tell_report(question: Json) -> Json:
    """The ``report`` of a tuning job to read, as its ``form`` asks; a page loads nothing."""
    from tuner.report.answers import Form, report_of, write_report

    return {"text": write_report(report_of(question["report"]), Form(question["form"]))}


def predict(question: Json) -> Json:
    """What a step model says of settings under a workload (:mod:`api.aside.predict`)."""
    from api.aside.predict import simulated

    return simulated(question)


def find_capacity(question: Json) -> Json:
    """The load that settings carry on described hardware (:mod:`api.aside.capacity`)."""
    from api.aside.capacity import found_capacity

    return found_capacity(question)


def what_if(question: Json) -> Json:
    """What a model would do on described hardware (:mod:`api.aside.what_if`)."""
    from api.aside.what_if import simulated

    return simulated(question)


def replay(question: Json) -> Json:
    """An engine's last hours under two settings (:mod:`api.aside.replay`)."""
    from api.aside.replay import replayed

    return replayed(question)


def effect(question: Json) -> Json:
    """What other settings would have done on an engine's load (:mod:`api.aside.effect`)."""
    from api.aside.effect import effect as found

    return found(question)


def choose_forecaster(question: Json) -> Json:
    """Who forecasts an engine's load (:mod:`api.aside.forecaster`)."""
    from api.aside.forecaster import chosen_forecaster

    return chosen_forecaster(question)


TASKS: Mapping[str, Callable[[Json], Json]] = {
    "read_trace": read_trace,
    "tell_report": tell_report,
    "predict": predict,
    "capacity": find_capacity,
    "what_if": what_if,
    "replay": replay,
    "effect": effect,
    "choose_forecaster": choose_forecaster,
}
