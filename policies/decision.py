"""What the controller sees, remembers and answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from engine.spec.settings import Settings
from policies.clock import ahead_s, back
from policies.errors import PolicyInputError
from policies.schedule import Schedule


class Action(StrEnum):
    """What to do. ``raise_condition`` tells people; it never adds capacity. ``advise`` is a move
    that only people can make."""

    HOLD = "hold"
    MOVE = "move"
    ADVISE = "advise"
    RAISE_CONDITION = "raise_condition"


class Reason(StrEnum):
    """Why. The set is closed: metrics and the audit count by it."""

    NO_DATA = "no_data"
    STALE_DATA = "stale_data"
    FIRST_OBSERVATION = "first_observation"
    IN_BAND = "in_band"
    DEAD_BAND = "dead_band"
    COOL_DOWN = "cool_down"
    LOAD_UP = "load_up"
    LOAD_DOWN = "load_down"
    MIX_CHANGED = "mix_changed"
    SLA_MISSED = "sla_missed"
    SLA_MISSED_AT_TOP = "sla_missed_at_top"
    SLA_INFEASIBLE = "sla_infeasible"
    BEYOND_SCHEDULE = "beyond_schedule"
    DRIFT_PAUSED = "drift_paused"
    DRIFT_ADOPTED = "drift_adopted"
    DRIFT_REVERTED = "drift_reverted"


class BandRejection(StrEnum):
    """Why a band was not chosen."""

    LOAD_IS_HIGHER = "load_is_higher"
    LOAD_IS_LOWER = "load_is_lower"
    OTHER_MIX = "other_mix"
    DEAD_BAND = "dead_band"
    COOL_DOWN = "cool_down"
    NO_FRESH_DATA = "no_fresh_data"
    DRIFT = "drift"
    SLA_MISSED = "sla_missed"


class OnDrift(StrEnum):
    """What to do when the engine runs settings this controller did not command."""

    PAUSE = "pause"
    ADOPT = "adopt"
    REVERT = "revert"


@dataclass(frozen=True, kw_only=True)
class ControlLimits:
    """How eager the controller is.

    ``dead_band`` is the least share by which the load must pass a band's edge; ``chance_up`` and
    ``chance_down`` are how surely that must be no luck (a load that rises may miss the SLA, one
    that falls can wait). The cool-downs count from the last change. ``misses_to_correct`` windows
    in a row that miss the SLA, each with at least ``min_requests``, move to the settings of a
    higher load. Drift and misses count only from ``settle_s`` after a change, when it has had time
    to show.

    Raises:
        PolicyInputError: a limit outside its range.
    """

    ema_alpha: float = 0.3
    dead_band: float = 0.1
    chance_up: float = 0.9
    chance_down: float = 0.9999
    cool_down_up_s: float = 0.0
    cool_down_down_s: float = 300.0
    max_data_age_s: float = 15.0
    settle_s: float = 15.0
    min_requests: int = 20
    misses_to_correct: int = 3
    on_drift: OnDrift = OnDrift.PAUSE

    def __post_init__(self) -> None:
        checks = (
            (0 < self.ema_alpha <= 1, f"ema_alpha={self.ema_alpha}: must be in (0, 1]"),
            (0 <= self.dead_band < 1, f"dead_band={self.dead_band}: must be in [0, 1)"),
            (0.5 <= self.chance_up < 1, f"chance_up={self.chance_up}: must be in [0.5, 1)"),
            (0.5 <= self.chance_down < 1, f"chance_down={self.chance_down}: must be in [0.5, 1)"),
            (self.cool_down_up_s >= 0, f"cool_down_up_s={self.cool_down_up_s}: below 0"),
            (self.cool_down_down_s >= 0, f"cool_down_down_s={self.cool_down_down_s}: below 0"),
            (self.misses_to_correct >= 1, f"misses_to_correct={self.misses_to_correct}: below 1"),
        )
        for is_fine, message in checks:
            if not is_fine:
                raise PolicyInputError(f"control limits: {message}")


@dataclass(frozen=True, kw_only=True)
class LoadWindow:
    """What was observed in the last ``window_s`` seconds. A rate of 0 is a real, observed silence.

    Mean lengths are None when no request arrived. ``is_sla_met`` is None when nothing finished
    in the window; ``num_requests`` is how many requests it was judged by. ``age_s`` is how long
    ago the window ended.

    Raises:
        PolicyInputError: a number that is not finite.
    """

    window_s: float
    rate_rps: float
    mean_input_tokens: float | None
    mean_output_tokens: float | None
    num_requests: int = 0
    is_sla_met: bool | None = None
    age_s: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(
            self, "window_s", "rate_rps", "mean_input_tokens", "mean_output_tokens", "age_s"
        )


@dataclass(frozen=True, kw_only=True)
class SmoothedLoad:
    """Exponential moving averages of the load; lengths None until a request was seen.

    Raises:
        PolicyInputError: a number that is not finite.
    """

    rate_rps: float
    mean_input_tokens: float | None
    mean_output_tokens: float | None

    def __post_init__(self) -> None:
        _check_finite(self, "rate_rps", "mean_input_tokens", "mean_output_tokens")


@dataclass(frozen=True, kw_only=True)
class BeyondBand:
    """The load is above its band and the dead band (or below them) since ``since_s`` without a
    break, as last seen at ``seen_s``."""

    is_above: bool
    since_s: float
    seen_s: float


@dataclass(frozen=True, kw_only=True)
class ControlMemory:
    """What one decision hands to the next.

    ``load_band`` is the band the load belongs to. ``band_index`` is the band whose settings are
    commanded; it is the higher one after a correction by observation.
    """

    load_band: int | None = None
    band_index: int | None = None
    commanded: Settings | None = None
    smoothed: SmoothedLoad | None = None
    changed_s: float | None = None
    misses: int = 0
    beyond: BeyondBand | None = None

    def as_of(self, now_s: float) -> ControlMemory:
        """The same, but after a clock that was set back (:mod:`policies.clock`)."""
        changed_s = back(self.changed_s, ahead_s(now_s, self.changed_s))
        is_ahead = self.beyond is not None and self.beyond.seen_s > now_s
        return replace(self, changed_s=changed_s, beyond=None if is_ahead else self.beyond)


@dataclass(frozen=True, kw_only=True)
class ControlState:
    """Everything a decision depends on.

    ``load`` None: no data came. ``in_force``: the settings the engine reports, None if unknown.
    ``is_feasible_when_idle`` False: a single request as long as those of the schedule misses the
    SLA even alone, under any of its settings (``policies.feasibility``).
    """

    schedule: Schedule
    now_s: float
    load: LoadWindow | None
    in_force: Settings | None = None
    is_feasible_when_idle: bool | None = None
    memory: ControlMemory = field(default_factory=ControlMemory)
    limits: ControlLimits = field(default_factory=ControlLimits)


@dataclass(frozen=True, kw_only=True)
class RejectedBand:
    """A band that was not chosen, and why."""

    band_index: int
    why: BandRejection


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do and why. ``settings`` is what should be in force from now on.

    None only before the first observation. ``memory`` goes into the next state.
    """

    action: Action
    reason: Reason
    settings: Settings | None
    band_index: int | None
    rejected: tuple[RejectedBand, ...]
    memory: ControlMemory


def _check_finite(value: object, *names: str) -> None:
    for name in names:
        number = getattr(value, name)
        if number is not None and not math.isfinite(number):
            raise PolicyInputError(f"{name}={number}: must be finite")
