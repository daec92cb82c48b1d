"""The first settings to simulate for every plan, and the thresholds its step times advise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.executors.protocol import StepTimer
from engine.spec.modes import ENDS, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.rungs import Thresholds
from engine.spec.settings import Caps, Settings
from policies.objective import Objective
from policies.points import OperatingPoint
from policies.sla import Sla
from policies.threshold import LadderTimes, ladder_thresholds
from tuner.spec.space import Space
from tuner.work.shapes import STEP_TOKENS, step_shape

MAX_DESIGN = 120
# The caps that leave most room for KV, of those that every plan is simulated with.
LEAST_CAPS = Caps(max_num_seqs=32, max_num_batched_tokens=256)
MAX_REFINED_PLANS = 4


@dataclass(frozen=True, kw_only=True)
class ModeRule:
    """Thresholds in tokens: of shift, and of each rung between on which a step is fastest."""

    threshold_tokens: int
    rung_thresholds: Thresholds = ()

    def settings(self, plan: ParallelPlan, caps: Caps) -> Settings:
        """A plan under ``caps`` whose steps go by the rule."""
        return Settings(
            plan=plan,
            caps=caps,
            threshold_tokens=self.threshold_tokens,
            rung_thresholds=self.rung_thresholds,
        )

    def with_decodes_in_shift(self, max_num_seqs: int) -> ModeRule:
        """The rule that keeps full decode steps in shift; rungs get the steps that are left."""
        least = max(self.threshold_tokens, max_num_seqs)
        left = tuple((mode, most) for mode, most in self.rung_thresholds if most > least)
        return ModeRule(threshold_tokens=least, rung_thresholds=left)


def advised_rule(timer: StepTimer, modes: Sequence[Mode], max_num_seqs: int) -> ModeRule:
    """Where each of ``modes`` (from base down to shift) becomes faster than those of fewer slices:
    decodes up to ``max_num_seqs``, prefill beyond.
    """
    climbed = modes[::-1]
    times = []
    for num_tokens in STEP_TOKENS:
        shapes = (step_shape(num_tokens, max_num_seqs, mode) for mode in climbed)
        mode_ms = tuple(1e3 * sum(timer.stage_seconds(shape)) for shape in shapes)
        times.append(LadderTimes(num_tokens=num_tokens, mode_ms=mode_ms))
    most = dict(zip(climbed, ladder_thresholds(times), strict=False))
    shift = most.pop(SHIFT, None) or 0
    return ModeRule(
        threshold_tokens=shift,
        rung_thresholds=tuple((mode, limit) for mode, limit in reversed(most.items()) if limit),
    )


def advised_ladders(
    timers: Mapping[ParallelPlan, StepTimer], max_num_seqs: int
) -> dict[ParallelPlan, Thresholds]:
    """Thresholds of rungs between base and shift, of the plans where some step is fastest there."""
    found = {
        plan: advised_rule(timer, plan.modes, max_num_seqs).rung_thresholds
        for plan, timer in timers.items()
    }
    return {plan: thresholds for plan, thresholds in found.items() if thresholds}


def design_settings(space: Space, timers: dict[ParallelPlan, StepTimer]) -> list[Settings]:
    """A few settings for every plan: default caps first, then others while they are few."""
    per_plan = max(2, min(8, MAX_DESIGN // len(space.plans)))
    settings: list[Settings] = []
    for plan in space.plans:
        options = [
            settings
            for caps in _caps(space)
            if space.has_room(plan, caps)
            for settings in ruled_settings(plan, timers[plan], caps, has_rungs=space.has_rungs)
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
    return [
        settings
        for settings in dict.fromkeys(found)
        if settings not in design and space.has_room(settings.plan, settings.caps)
    ]


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
        (LEAST_CAPS.max_num_seqs, LEAST_CAPS.max_num_batched_tokens),
    ]
    return [
        Caps(max_num_seqs=seqs, max_num_batched_tokens=min(tokens, most)) for seqs, tokens in wanted
    ]


def ruled_settings(
    plan: ParallelPlan, timer: StepTimer, caps: Caps, *, has_rungs: bool
) -> list[Settings]:
    """``plan`` under ``caps`` with the thresholds that step times advise, of the whole ladder and
    of its two ends; and, as their twin, with thresholds that keep full decode steps in shift.
    """
    if not plan.shift:
        return [Settings(plan=plan, caps=caps)]
    advised = [
        _at_least_one(advised_rule(timer, modes, caps.max_num_seqs))
        for modes in dict.fromkeys((plan.modes if has_rungs else ENDS, ENDS))
    ]
    rules = [advised[0].with_decodes_in_shift(caps.max_num_seqs), *advised]
    return [rule.settings(plan, caps) for rule in dict.fromkeys(rules)]


def _at_least_one(rule: ModeRule) -> ModeRule:
    """A threshold of 0 would be a plan without shift, which is tried by itself."""
    return replace(rule, threshold_tokens=max(1, rule.threshold_tokens))
