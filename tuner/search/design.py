"""The first settings to simulate for every plan, and the threshold its step times advise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.executors.protocol import StepTimer
from engine.spec.modes import ENDS, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from policies.objective import Objective
from policies.points import OperatingPoint
from policies.sla import Sla
from policies.threshold import StepPair, shift_threshold
from tuner.spec.space import Space

MAX_DESIGN = 120
MAX_REFINED_PLANS = 4
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
CONTEXT_TOKENS = 512


def advised_threshold(timer: StepTimer, max_num_seqs: int) -> int:
    """Where base becomes faster than shift: decodes up to ``max_num_seqs``, prefill beyond."""
    pairs = []
    for num_tokens in STEP_TOKENS:
        base, shift = (
            1e3 * sum(timer.stage_seconds(_shape(num_tokens, max_num_seqs, mode))) for mode in ENDS
        )
        pairs.append(StepPair(num_tokens=num_tokens, base_ms=base, shift_ms=shift))
    return shift_threshold(pairs)


def design_settings(space: Space, timers: dict[ParallelPlan, StepTimer]) -> list[Settings]:
    """A few settings for every plan: default caps first, then others while they are few."""
    per_plan = max(2, min(8, MAX_DESIGN // len(space.plans)))
    settings: list[Settings] = []
    for plan in space.plans:
        options = [
            Settings(plan=plan, threshold_tokens=threshold, caps=caps)
            for caps in _caps(space)
            for threshold in twin_thresholds(plan, timers[plan], caps)
        ]
        settings += list(dict.fromkeys(options))[:per_plan]
    return settings


def refined_settings(
    space: Space,
    sla: Sla,
    design: Mapping[Settings, OperatingPoint],
    objective: Objective = Objective.DEVICES,
) -> list[Settings]:
    """Every token budget for the plans closest to the SLA; the design tries only a few."""
    best: dict[ParallelPlan, tuple[float, ...]] = {}
    for settings, point in design.items():
        rank = rank_point(point, sla, objective)
        best[settings.plan] = min(best.get(settings.plan, rank), rank)
    closest = sorted(best, key=lambda plan: best[plan])[:MAX_REFINED_PLANS]
    found = [
        replace(settings, caps=replace(settings.caps, max_num_batched_tokens=tokens))
        for settings in design
        if settings.plan in closest
        and settings.caps.max_num_seqs == space.default_caps.max_num_seqs
        for tokens in space.batched_tokens
    ]
    return [settings for settings in dict.fromkeys(found) if settings not in design]


def rank_point(
    point: OperatingPoint, sla: Sla, objective: Objective = Objective.DEVICES
) -> tuple[float, ...]:
    """Sort key, best first: least missed constraint, then the objective (by devices the fewest,
    then the fastest: chances are not known of what was simulated once).

    Constraints the point says nothing about (the surrogate knows no attainment) are left out.
    """
    margins = [point.margin(c) for c in sla.constraints if point.actual(c) is not None]
    missed = max(0.0, -min(margins)) if margins else 0.0
    if objective is Objective.DEVICES:
        return (round(missed, 6), float(point.cost_devices), point.latency_score(sla))
    return (round(missed, 6), *objective.order(point, sla))


def _caps(space: Space) -> list[Caps]:
    default, most = space.default_caps, max(space.batched_tokens)
    wanted = [
        (default.max_num_seqs, default.max_num_batched_tokens),
        (default.max_num_seqs, 512),
        (256, default.max_num_batched_tokens),
        (16, 512),
        (256, most),
        (32, 256),
    ]
    return [
        Caps(max_num_seqs=seqs, max_num_batched_tokens=min(tokens, most)) for seqs, tokens in wanted
    ]


def twin_thresholds(plan: ParallelPlan, timer: StepTimer, caps: Caps) -> list[int]:
    """The advised threshold and, as its twin, one that keeps full decode steps in shift."""
    if not plan.shift:
        return [Settings(plan=plan).threshold_tokens]
    advised = max(1, advised_threshold(timer, caps.max_num_seqs))
    return list(dict.fromkeys([max(advised, caps.max_num_seqs), advised]))


def _shape(num_tokens: int, max_num_seqs: int, mode: Mode) -> StepShape:
    if num_tokens <= max_num_seqs:
        return StepShape(
            mode=mode,
            num_seqs=num_tokens,
            num_decode_tokens=num_tokens,
            decode_context_tokens=num_tokens * CONTEXT_TOKENS,
            num_sampled=num_tokens,
        )
    return StepShape(
        mode=mode,
        num_seqs=1,
        num_prefill_tokens=num_tokens,
        prefill_context_tokens=num_tokens,
        prefill_attention_pairs=num_tokens * (num_tokens + 1) // 2,
        num_sampled=1,
    )
