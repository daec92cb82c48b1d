"""Plans that the shards held by ranks suffice for: each of their modes is a rung of the plan that
the ranks were started with (docs/ladder.md).
"""

from __future__ import annotations

from dataclasses import replace

from engine.spec.modes import Mode, ModePin, pinned_mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings


def why_not_held(held: ParallelPlan, plan: ParallelPlan) -> str | None:
    """Why ranks that hold the shards of ``held`` must start again to run ``plan``; None if they
    need not.
    """
    if plan == held:
        return None
    for axis in ("dp", "pp"):
        before, after = getattr(held, axis), getattr(plan, axis)
        if before != after:
            return f"{axis}={before} -> {after}: other ranks hold other layers or copies"
    if plan.stage_size != held.stage_size:
        return f"a stage of {plan.stage_size} ranks instead of {held.stage_size} holds other shards"
    if not held.shift:
        return f"ranks of plan {held} have one mode; started with Shift on, they have its rungs"
    if held.sp % plan.sp:
        rungs = ", ".join(str(held.rung(mode)) for mode in held.modes)
        return f"sp={plan.sp},tp={plan.tp} is no rung of what ranks hold ({held}: {rungs})"
    return None


def held_under(held: ParallelPlan, plan: ParallelPlan) -> ParallelPlan:
    """The plan whose shards ranks hold once those that hold ``held`` run ``plan``: the same in more
    or fewer copies where its modes are rungs of it, else ``plan``.
    """
    copies = replace(held, dp=plan.dp)
    return copies if why_not_held(copies, plan) is None else plan


def list_held(held: ParallelPlan) -> tuple[ParallelPlan, ...]:
    """Every plan that ranks holding the shards of ``held`` can run without starting again."""
    if not held.shift:
        return (held,)
    rungs = [held.rung(mode) for mode in held.modes]
    return tuple(
        replace(held, sp=rung.sp, tp=rung.tp, shift=shift)
        for rung in rungs
        for shift in (True, False)
        if rung.sp > 1 or not shift
    )


def settings_on(held: ParallelPlan, settings: Settings) -> Settings:
    """``settings`` in the words of ``held``, whose ranks obey them: its plan, and the modes by the
    names that they have there. The plan must be one of :func:`list_held`.
    """
    plan = settings.plan
    if plan == held:
        return settings
    assert why_not_held(held, plan) is None, "what ranks do not hold takes a reshape"

    def named(mode: Mode) -> Mode:
        return held.mode_of(plan.rung(mode).mode)

    modes = tuple(named(mode) for mode in settings.modes)
    mode = pinned_mode(settings.pin)
    if mode is None and not plan.shift:
        pin = ModePin(modes[0])
    else:
        pin = settings.pin if mode is None else ModePin(named(mode))
    return replace(
        settings,
        plan=held,
        pin=pin,
        rungs=modes,
        rung_thresholds=tuple((named(m), tokens) for m, tokens in settings.rung_thresholds),
    )
