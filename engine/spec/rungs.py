"""Modes that a policy names, under the plan they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.spec.errors import PlanError, PolicyError
from engine.spec.modes import ENDS, Mode, ModePin, pinned_mode
from engine.spec.plan import MOST_THRESHOLD, ParallelPlan

# Rungs between base and shift, each with the most tokens of its steps; hashable, unlike a mapping.
Thresholds = tuple[tuple[Mode, int], ...]


def allowed_modes(plan: ParallelPlan, rungs: tuple[Mode, ...] | None) -> tuple[Mode, ...]:
    """The modes of ``plan`` that are among ``rungs`` (None: all), from base down to shift."""
    if rungs is None or not plan.shift:
        return plan.modes
    return tuple(mode for mode in plan.modes if mode in rungs)


def check_modes(
    plan: ParallelPlan, pin: ModePin, rungs: tuple[Mode, ...] | None, thresholds: Thresholds
) -> None:
    """Refuse modes that ``plan`` does not have, or has by another name, and a pin that is not among
    ``rungs``.

    Raises:
        PolicyError: with the modes there are.
    """
    _check_names(plan, (*(rungs or ()), *(mode for mode, _ in thresholds)))
    if rungs is not None and (not rungs or len(set(rungs)) < len(rungs)):
        raise PolicyError(f"rungs {list(rungs)}: must be one mode or more, each once")
    for mode, tokens in thresholds:
        if mode in ENDS:
            raise PolicyError(
                f"rung_thresholds of {mode!r}: only rungs between base and shift have one; "
                "shift's is threshold_tokens, and base takes the rest"
            )
        if not 0 <= tokens <= MOST_THRESHOLD:
            raise PolicyError(f"{mode}={tokens}: must be in 0..{MOST_THRESHOLD}")
    if (held := pinned_mode(pin)) is not None:
        _check_pin(plan, held, allowed_modes(plan, rungs))


def _check_names(plan: ParallelPlan, modes: Iterable[Mode]) -> None:
    for mode in modes:
        if (known := _mode_of(plan, mode)) != mode:
            raise PolicyError(f"mode {mode!r} of plan {plan} is called {known!r}")


def _check_pin(plan: ParallelPlan, mode: Mode, allowed: tuple[Mode, ...]) -> None:
    if mode in allowed:
        return
    _check_names(plan, [mode])
    if not plan.shift:
        raise PolicyError(
            f"mode {mode!r} needs a plan with Shift on; this one is {plan}; "
            "send shift.enabled with it",
            needs="reshape",
        )
    raise PolicyError(
        f"mode {mode!r} is not among the rungs {', '.join(allowed)}; add it there or leave "
        "rungs out"
    )


def pin_of(plan: ParallelPlan, pin: ModePin) -> ModePin:
    """``pin`` by the name that its mode has under ``plan``: ``8x1`` is ``base`` of sp=8.

    Raises:
        PolicyError: no such rung.
    """
    mode = pinned_mode(pin)
    return pin if mode is None else ModePin(_mode_of(plan, mode))


def rungs_of(plan: ParallelPlan, modes: Iterable[Mode]) -> tuple[Mode, ...]:
    """``modes`` by the names they have under ``plan``, from base down to shift.

    Raises:
        PolicyError: no such rung.
    """
    return tuple(sorted((_mode_of(plan, mode) for mode in modes), key=lambda m: -plan.rung(m).sp))


def thresholds_of(plan: ParallelPlan, found: Mapping[Mode, int]) -> Thresholds:
    """Thresholds in tokens of rungs between base and shift, from those near base down.

    Raises:
        PolicyError: no such rung.
    """
    named = {_mode_of(plan, mode): tokens for mode, tokens in found.items()}
    return tuple((mode, named[mode]) for mode in rungs_of(plan, named))


def _mode_of(plan: ParallelPlan, mode: Mode) -> Mode:
    try:
        return plan.mode_of(mode)
    except PlanError as error:
        raise PolicyError(str(error)) from error
