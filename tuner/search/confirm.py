"""Measures winners again: on requests that nobody has seen, as many as those they were chosen
for."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from policies.report import measurement_json
from policies.verdict import is_dependable, verdict
from tuner.search.context import TuningContext
from tuner.search.evidence import measured_point
from tuner.search.live_run import run_live
from tuner.search.remaining_budget import RemainingBudget
from tuner.search.report import Confirmation
from tuner.spec.errors import WorkloadError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

FRESH_SEED_OFFSET = 7919
MAX_DRAWS = 50
# One draw of a bursty process may have a tenth of another's requests, or as many in a tenth of the
# time.
ALIKE = 0.25


def confirm(
    context: TuningContext,
    settings: Settings,
    nth: int,
    budget: RemainingBudget,
    is_cancelled: Callable[[], bool],
) -> Confirmation:
    """Measure ``settings`` on the whole workload with another seed, if the budget holds that.

    The SLA counts as met only if the new run shows it with enough certainty (``policies.verdict``).
    """
    seed = context.spec.seed + FRESH_SEED_OFFSET + nth
    workload = fresh_workload(context.spec.workload, context.workload, seed=seed)
    if (dear := budget.why_not_run(settings, workload)) is not None:
        return Confirmation(
            settings=settings, seed=seed, point=None, reason=dear, is_out_of_budget=True
        )
    context.emit("measuring", f"{settings}: {len(workload)} requests with a fresh seed")
    run = run_live(
        context,
        settings,
        workload,
        seed=seed,
        fidelity=Fidelity.MEASURED,
        allowed_s=budget.allowed_s(settings),
        is_cancelled=is_cancelled,
    )
    budget.pay(run.cost, settings)
    measurement = run.measurement
    if measurement is None:
        assert run.reason is not None, "what told nothing has a reason"
        return Confirmation(
            settings=settings,
            seed=seed,
            point=None,
            reason=run.reason,
            is_out_of_budget=run.is_out_of_budget,
        )
    simulated = context.simulator.point(settings, workload)
    point = measured_point(settings, measurement, context.sla, simulated=simulated, seed=seed)
    return Confirmation(
        settings=settings,
        seed=seed,
        point=point,
        is_met=is_dependable(point, context.sla),
        sla_probability=point.probability(context.sla),
        reason=run.reason or verdict(point, context.sla),
        document=measurement_json(measurement, context.sla) | context.told_by_server(),
        log_slower=0.0
        if context.simulator.is_blind
        else _log_slower(measurement, context.simulator.run(settings, workload)),
    )


def fresh_workload(spec: str, like: Workload, *, seed: int) -> Workload:
    """Another draw of ``spec`` with about as many requests and tokens as ``like``, in as much time.

    Draws of a bursty process differ by an order of magnitude. A light draw that meets the SLA
    proves nothing about a heavy one, and a heavy one that misses it nothing about a light one. If
    no draw is alike, the requests are those of ``like`` with other prompts.
    """
    for draw in range(MAX_DRAWS):
        try:
            workload = parse_workload(spec, seed=seed + draw * FRESH_SEED_OFFSET)
        except WorkloadError:  # this draw has no request in the window
            continue
        sizes = zip(_sizes(workload), _sizes(like), strict=True)
        if all(abs(mine - theirs) <= ALIKE * theirs for mine, theirs in sizes):
            return workload
    return like


def _sizes(workload: Workload) -> tuple[float, ...]:
    """Requests, prompt tokens, output tokens and seconds."""
    inputs, outputs = workload.input_tokens, workload.output_tokens
    return float(len(workload)), float(inputs.sum()), float(outputs.sum()), workload.span_s


def _log_slower(measured: Measurement, simulated: Measurement) -> float:
    """How much slower the run's tokens came than in simulation, as a log ratio."""
    mine, theirs = measured.tpot_ms.mean, simulated.tpot_ms.mean
    if mine is None or theirs is None:  # no request had two tokens
        mine, theirs = measured.ttft_ms.mean, simulated.ttft_ms.mean
    return math.log(mine / theirs) if mine and theirs else 0.0
