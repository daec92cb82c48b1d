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
from tuner.search.context import WHOLE_REQUESTS, TuningContext
from tuner.search.costs import Cost, Level, Meter
from tuner.search.design import design_settings, refined_settings
from tuner.search.surrogate import Example, Features, Load, features
from tuner.spec.cancel import Cancellation
from tuner.spec.digest import digest, software_digest
from tuner.workload.slices import at_rate, head
from tuner.workload.workload import Workload

SCHEMA = "groundwork/v1"
# How many requests the design is simulated on, and the factors of the workload's rate at which some
# of it is simulated again.
DESIGN_REQUESTS = 120
DESIGN_RATES = (0.5, 2.0)
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


def lay_groundwork(context: TuningContext, kept: Json | None, cancel: Cancellation) -> None:
    """Take over the design that was kept, where it is of this very job and this software; else
    simulate it."""
    space = context.space
    if context.simulator.is_blind:
        context.emit("prepared", f"{len(space.plans)} plans; nothing is simulated before trials")
        return
    context.groundwork_key = groundwork_key(context)
    if kept is not None and kept.get("key") == context.groundwork_key:
        when = " before"
        _take_over(context, kept)
    else:
        when = ""
        with (design := Meter()).timing(Level.SIMULATED):
            _simulate_design(context, cancel)
        context.design_costs = design.taken()
    context.emit(
        "prepared",
        f"{len(space.plans)} feasible plans ({len(space.pruned)} pruned), "
        f"{len(context.design)} settings simulated{when}",
        plans=[str(plan) for plan in space.plans],
    )


def _simulate_design(context: TuningContext, cancel: Cancellation) -> None:
    """Simulate a few settings of every feasible plan; some also at other rates, and some on all
    that trials run, for the surrogate."""
    space, simulator = context.space, context.simulator
    sample = head(context.trial_workload, DESIGN_REQUESTS)
    timers = {plan: simulator.timer(plan) for plan in space.plans}

    def simulate(settings: Settings, workload: Workload, load: Load) -> OperatingPoint:
        cancel.check()
        point = simulator.quick_point(settings, workload)
        known = features(settings, load, timers[settings.plan])
        context.examples.append(Example(point=point, features=known))
        return point

    def simulate_all(every: list[Settings]) -> None:
        load = Load.of(sample)
        for settings in every:
            context.design[settings] = simulate(settings, sample, load)

    simulate_all(design_settings(space, timers))
    objective = context.spec.goal.objective
    simulate_all(refined_settings(space, context.sla, context.design, objective))
    first = {settings.plan: settings for settings in reversed(context.design)}
    some = [first[plan] for plan in space.plans[:: max(1, len(space.plans) // 8)] if plan in first]
    others = [at_rate(sample, factor) for factor in DESIGN_RATES]
    if len(sample) < len(context.trial_workload):
        others.append(head(context.trial_workload, WHOLE_REQUESTS))
    for workload in others:
        load = Load.of(workload)
        for settings in some:
            simulate(settings, workload, load)


def _take_over(context: TuningContext, kept: Json) -> None:
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
