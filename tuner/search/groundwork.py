"""What the trials of a job rest on, kept so that another process need not work it out again.

That is the simulated design and the estimates that ranking solved: seconds of arithmetic which come
out alike in any process. They are kept under a key over everything that they follow from, this
software included; if the key differs, they are worked out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import (
    OperatingPoint,
    exact_from_json,
    exact_to_json,
    numbers_from_json,
    numbers_to_json,
)
from tuner.search.context import TuningContext
from tuner.search.costs import Cost, Level
from tuner.search.surrogate import Example, Features
from tuner.spec.digest import digest, software_digest

SCHEMA = "groundwork/v1"
Json = dict[str, Any]


def groundwork_key(context: TuningContext) -> str:
    """A hash of what the groundwork follows from: the question, the contents of the files that it
    names, and the software."""
    return digest(
        SCHEMA,
        software_digest(),
        replace(context.spec, trials=1),  # how many there are changes nothing for any of them
        context.model,
        context.space,
        context.workload.source,
        context.simulator.node,
        None if context.cost_model is None else context.cost_model.id,
    )


def find_groundwork(context: TuningContext, kept: Json | None) -> Json | None:
    """``kept``, where it is of this very job and this software."""
    is_ours = kept is not None and kept.get("key") == context.groundwork_key
    return kept if is_ours else None


def put_groundwork(context: TuningContext, kept: Json) -> None:
    """Let ``context`` go on from ``kept``."""
    context.examples[:] = [_example(raw) for raw in kept["examples"]]
    points = [example.point for example in context.examples[: kept["num_design"]]]
    context.design.update({point.settings: point for point in points})
    context.design_costs = (Cost(level=Level.SIMULATED, seconds=kept["seconds"]),)
    context.corrected.know(kept["estimates"])
    context.num_kept = _size(context)


def new_groundwork(context: TuningContext) -> Json | None:
    """What there is by now, to be kept; None if nothing has been added since the last call."""
    size = _size(context)
    if size == context.num_kept:
        return None
    context.num_kept = size
    return {
        "schema": SCHEMA,
        "key": context.groundwork_key,
        "num_design": len(context.design),
        "examples": [_example_json(example) for example in context.examples],
        "seconds": sum(cost.seconds for cost in context.design_costs),
        "estimates": context.corrected.to_json(),
    }


def _size(context: TuningContext) -> int:
    """Grows with what is worked out; 0 if nothing is known of step times."""
    if context.simulator.is_blind:
        return 0
    return len(context.examples) + context.corrected.num_known


def _example_json(example: Example) -> Json:
    point, known = example.point, example.features
    return {
        "settings": point.settings.to_json(),
        "metrics": exact_to_json(point.metrics),
        "row": list(known.row),
        "physical": numbers_to_json(known.physical),
        "queues": bool(known.queues),
    }


def _example(raw: Json) -> Example:
    row: Sequence[float] = raw["row"]
    point = OperatingPoint(
        settings=Settings.from_json(raw["settings"]),
        fidelity=Fidelity.SIMULATED,
        metrics=exact_from_json(raw["metrics"]),
    )
    known = Features(
        row=tuple(row), physical=numbers_from_json(raw["physical"]), queues=raw["queues"]
    )
    return Example(point=point, features=known)
