"""What single requests tell about every load: no request is served faster than alone.

Under load a request's TTFT is at least its TTFT alone, which rises with its prompt. So a percentile
of TTFT under load is at least the lone TTFT at the same percentile of prompt lengths. Of prompts
that share beginnings only what no prefix cache holds counts. A gap between
tokens is at least a lone decode step at the shortest prompt. Means and E2E also depend on lengths
that a few requests do not show, so they are not bounded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.spec.modes import ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from policies.constraint import Constraint, Metric, Percentile
from policies.sla import Sla
from policies.verdict import missed_text
from tuner.backends.backend import HostTimes
from tuner.described.node import Node
from tuner.workload.workload import Arrival, IntArray, Workload

# Step times are not quite monotonic: a larger step may be this share quicker than a smaller one.
SLACK = 0.1
# Requests this far apart have ended long before the next one comes.
GAP_S = 1e5


def alone_metrics(
    node: Node, options: Sequence[Settings], workload: Workload, sla: Sla, *, seed: int
) -> dict[str, float]:
    """Lower bounds of ``sla``'s percentiles of TTFT, TPOT and ITL under ``workload``, for all
    ``options`` of one plan.
    """
    constraints = bounded_alone(sla)
    plan = options[0].plan
    node = _as_if_hidden(node, plan)
    own = node.computed_tokens(workload)
    is_cut = workload.closed is not None and workload.closed.limit_s is not None
    lengths = {
        c.key: int(own.min()) if is_cut else _length_at(own, c)  # a cut run chooses what is sent
        for c in constraints
        if c.metric is Metric.TTFT_MS
    }
    ttft_ms = _first_tokens_ms(node, options, workload, set(lengths.values()), seed)
    found = {key: ttft_ms[length] for key, length in lengths.items() if length in ttft_ms}
    if workload.output_tokens.max() > 1:
        gap_ms = _gap_ms(node, plan, int(workload.input_tokens.min()))
        found |= {c.key: gap_ms for c in constraints if c.key not in lengths}
    return found


def alone_reason(flat: dict[str, float], sla: Sla) -> str | None:
    """The bounds that even requests with the engine to themselves certainly miss, or None."""
    missed = [
        missed_text(c, flat[c.key])
        for c in bounded_alone(sla)
        if c.key in flat and not c.is_met_by(flat[c.key] / (1 + SLACK))
    ]
    return f"with the engine to itself: {'; '.join(missed)}" if missed else None


def bounded_alone(sla: Sla) -> tuple[Constraint, ...]:
    """The constraints of whole runs that single requests can bound."""
    return tuple(
        c
        for c in sla.per_run
        if c.metric in (Metric.TTFT_MS, Metric.TPOT_MS, Metric.ITL_MS)
        and c.percentile is not Percentile.MEAN
    )


def _as_if_hidden(node: Node, plan: ParallelPlan) -> Node:
    """The node, for a pipeline without the host's work: a lone step waits for that work, but the
    stages of a fuller pipeline may hide it.
    """
    if plan.pp == 1:
        return node
    host = HostTimes(step_s=0.0, seq_s=0.0, is_overlapped=False)
    return replace(node, backend=replace(node.backend, host=host))


def _length_at(own_tokens: IntArray, constraint: Constraint) -> int:
    """The length at the rank at or below ``constraint``'s percentile. Without a percentile the
    bound holds for every request, so the longest counts.
    """
    lengths = np.sort(own_tokens)
    percent = constraint.percentile.percent if constraint.percentile else None
    share = 1.0 if percent is None else percent / 100
    return int(lengths[math.floor(share * (len(lengths) - 1))])


def _first_tokens_ms(
    node: Node, options: Sequence[Settings], workload: Workload, lengths: set[int], seed: int
) -> dict[int, float]:
    """The least TTFT of a lone prompt of each length; refused prompts are left out."""
    if not lengths:
        return {}
    arrivals = tuple(
        Arrival(arrival_s=i * GAP_S, input_tokens=length, output_tokens=1)
        for i, length in enumerate(sorted(lengths))
    )
    lone = replace(workload, arrivals=arrivals, closed=None)
    found: dict[int, float] = {}
    for settings in _variants(options, max(lengths)):
        for timing in node.simulate(settings, lone, seed=seed).measurement.completed:
            if timing.ttft_ms is not None:
                known = found.get(timing.prompt_tokens, math.inf)
                found[timing.prompt_tokens] = min(known, timing.ttft_ms)
    return found


def _variants(options: Sequence[Settings], longest: int) -> list[Settings]:
    """The ``options`` that differ for a lone prompt of up to ``longest`` tokens. Shift plans are
    tried in each mode they use, too: beside other requests, a prompt's steps run in the mode of the
    whole step.
    """
    found: dict[tuple[int, str, ModePin], Settings] = {}
    for settings in options:
        budget = min(settings.caps.max_num_batched_tokens, longest)
        found.setdefault((budget, settings.plan_text, settings.pin), settings)
        for mode in settings.modes_in_use if settings.plan.shift else ():
            pin = ModePin(mode)
            found.setdefault((budget, "", pin), replace(settings, pin=pin))
    return list(found.values())


def _gap_ms(node: Node, plan: ParallelPlan, context_tokens: int) -> float:
    """A decode step of one sequence, in the quickest mode."""
    timer = node.timer(plan)
    shapes = [
        StepShape(
            mode=mode,
            num_seqs=1,
            num_decode_tokens=1,
            decode_context_tokens=context_tokens,
            num_sampled=1,
        )
        for mode in plan.modes
    ]
    return min(1e3 * (sum(timer.stage_seconds(s)) + timer.host_seconds(s)) for s in shapes)
