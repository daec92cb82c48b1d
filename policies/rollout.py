"""A canary by turns: candidate and control settings serve in slices of time until the difference
of attainment is known, or the candidate has been exposed enough.

Pure: the caller brings time, what was counted and what the engine runs, and keeps the progress.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from policies.clock import ahead_s, back
from policies.effect import Effect, effect_of, is_above, is_below
from policies.errors import PolicyInputError

# The most slices of the candidate: a difference that takes more slices to show is too small for
# anybody to notice.
MOST_SLICES = 1000
# A candidate that has met few requests may serve this many times as long: with few requests, even
# two equal settings are seldom told from a regression.
FEW_TIMES, FEW_REQUESTS = 2, 3000


class Arm(StrEnum):
    """What is compared."""

    CONTROL = "control"
    CANDIDATE = "candidate"


class RolloutReason(StrEnum):
    """Why a rollout stands where it does. The set is closed: events and metrics count by it."""

    CREATED = "created"
    REPLAY_SKIPPED = "replay_skipped"
    REPLAY_PASSED = "replay_passed"
    REPLAY_WORSE = "replay_worse"
    REPLAY_FAILED = "replay_failed"
    NOT_WORSE = "not_worse"
    REGRESSION = "regression"
    EXPOSURE_CAP = "exposure_cap"
    TIME_CAP = "time_cap"
    LOAD_ABOVE_CAPACITY = "load_above_capacity"
    ENGINE_REFUSED = "engine_refused"
    IMPOSSIBLE = "impossible"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    IN_FORCE = "in_force"

    @property
    def is_undecided(self) -> bool:
        """Whether a canary ended before its difference was known."""
        return self in (
            RolloutReason.EXPOSURE_CAP,
            RolloutReason.TIME_CAP,
            RolloutReason.LOAD_ABOVE_CAPACITY,
        )


class CanaryAction(StrEnum):
    """What to do now."""

    HOLD = "hold"
    SWITCH = "switch"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, kw_only=True)
class RolloutLimits:
    """How a candidate is compared, and the most it may touch before that is decided.

    Requests that arrive in the first ``settle_s`` of a slice do not count: they meet what the one
    before left. A slice is counted ``wait_s`` after its end, when what arrived in it has ended. A
    pair with fewer than ``min_requests`` in one of its slices is set aside. ``tolerance``: a
    candidate is worse if its attainment is lower by more than that; ``alpha``: the chance of
    calling it worse if it is not, or no worse if it is. A candidate that has met fewer than
    ``few_requests`` after ``max_exposed_s`` may serve for twice as long.

    Raises:
        PolicyInputError: a limit outside its range.
    """

    slice_s: float = 30.0
    settle_s: float = 5.0
    wait_s: float = 30.0
    tolerance: float = 0.02
    alpha: float = 0.05
    max_exposed_s: float = 1800.0
    max_exposed_requests: int | None = None
    few_requests: int = 0
    max_duration_s: float = 7200.0
    min_requests: int = 5
    max_data_age_s: float = 15.0

    def __post_init__(self) -> None:
        most = self.max_exposed_requests
        checks = (
            (0 < self.slice_s < math.inf, f"slice_s={self.slice_s}: must be above 0"),
            (
                0 <= self.settle_s < self.slice_s,
                f"settle_s={self.settle_s}: must be from 0 to below slice_s={self.slice_s:g}",
            ),
            (0 <= self.wait_s < math.inf, f"wait_s={self.wait_s}: must be at least 0"),
            (0 <= self.tolerance < 1, f"tolerance={self.tolerance}: must be in [0, 1)"),
            (0 < self.alpha < 0.5, f"alpha={self.alpha}: must be in (0, 0.5)"),
            (
                self.slice_s <= self.max_exposed_s < math.inf,
                f"max_exposed_s={self.max_exposed_s}: must be at least one slice, "
                f"slice_s={self.slice_s:g}",
            ),
            (most is None or most >= 1, f"max_exposed_requests={most}: must be at least 1"),
            (
                self.max_exposed_s <= self.max_duration_s < math.inf,
                f"max_duration_s={self.max_duration_s}: must be at least "
                f"max_exposed_s={self.max_exposed_s:g}",
            ),
            (
                self.max_exposed_s <= MOST_SLICES * self.slice_s,
                f"max_exposed_s={self.max_exposed_s:g}: must be at most {MOST_SLICES} slices of "
                f"slice_s={self.slice_s:g}",
            ),
            (self.few_requests >= 0, f"few_requests={self.few_requests}: must be at least 0"),
            (self.min_requests >= 1, f"min_requests={self.min_requests}: must be at least 1"),
        )
        for is_fine, message in checks:
            if not is_fine:
                raise PolicyInputError(f"rollout limits: {message}")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A stretch of time in which one arm served: asked for, in force (None: not yet), ended."""

    number: int
    arm: Arm
    asked_s: float
    began_s: float | None = None
    ended_s: float | None = None

    @property
    def is_exposing(self) -> bool:
        """Whether the candidate serves, or may: until control's slice is in force, too."""
        return self.arm is Arm.CANDIDATE or (self.number > 0 and self.began_s is None)

    def exposed_until(self, until_s: float) -> float:
        """Of control's slice what passed until it was in force: before, the candidate may serve."""
        if self.arm is Arm.CONTROL:
            until_s = until_s if self.began_s is None else self.began_s
            return until_s - self.asked_s if self.number else 0.0
        return until_s - self.asked_s


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What arrived in a slice: requests that met the SLA, of those judged. ``is_whole``: nothing of
    the slice is missing."""

    met: int
    judged: int
    is_whole: bool = True

    @property
    def attainment(self) -> float:
        return self.met / self.judged


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two slices, one of each arm, counted."""

    control: Tally
    candidate: Tally

    @property
    def difference(self) -> float:
        """Attainment of the candidate less that of control."""
        return self.candidate.attainment - self.control.attainment


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How far a canary is. ``slices``: those not counted yet, the last one under way;
    ``num_set_aside`` pairs said nothing. ``seen_s``: when the last turn was."""

    began_s: float
    slices: tuple[Slice, ...] = ()
    pairs: tuple[Pair, ...] = ()
    num_set_aside: int = 0
    exposed_s: float = 0.0
    exposed_requests: int = 0
    seen_s: float = 0.0

    @property
    def differences(self) -> list[float]:
        return [pair.difference for pair in self.pairs]

    @property
    def under_way(self) -> Slice | None:
        """The slice that has not ended."""
        return self.slices[-1] if self.slices and self.slices[-1].ended_s is None else None

    def exposed_until(self, now_s: float) -> float:
        """Seconds in which the candidate was, or may have been, in force."""
        current = self.under_way
        return self.exposed_s + (0.0 if current is None else current.exposed_until(now_s))

    def as_of(self, now_s: float) -> Canary:
        """The same, but after a clock that was set back (:mod:`policies.clock`)."""
        by_s = ahead_s(now_s, self.seen_s)
        if not by_s:
            return self
        return replace(
            self,
            began_s=self.began_s - by_s,
            seen_s=self.seen_s - by_s,
            slices=tuple(
                replace(
                    part,
                    asked_s=part.asked_s - by_s,
                    began_s=back(part.began_s, by_s),
                    ended_s=back(part.ended_s, by_s),
                )
                for part in self.slices
            ),
        )

    def effect(self, limits: RolloutLimits) -> Effect:
        return effect_of(self.differences, alpha=limits.alpha)

    def due(self, now_s: float, limits: RolloutLimits) -> tuple[Slice, ...]:
        """Slices of whole pairs that can be counted now."""
        return tuple(
            part
            for first, second in zip(self.slices[::2], self.slices[1::2], strict=False)
            if second.ended_s is not None and now_s >= second.ended_s + limits.wait_s
            for part in (first, second)
        )


@dataclass(frozen=True, kw_only=True)
class CanaryState:
    """Everything a turn depends on.

    ``in_force_since_s``: since when the engine runs what it was asked for last (None: it does not
    yet). ``tallies``: counts of the slices that are due, by number. ``data_age_s``: how long ago
    the engine was heard of, ``num_arrived``: requests since the last turn. ``seed`` draws the order
    of each pair.
    """

    canary: Canary
    now_s: float
    in_force_since_s: float | None
    data_age_s: float
    seed: str
    limits: RolloutLimits
    tallies: Mapping[int, Tally] = field(default_factory=dict)
    num_arrived: int = 0


@dataclass(frozen=True, kw_only=True)
class CanaryDecision:
    """What to do, why (None: nothing new), and the progress to keep."""

    action: CanaryAction
    canary: Canary
    reason: RolloutReason | None = None


def order_of(seed: str, pair: int) -> tuple[Arm, Arm]:
    """The order of a pair, drawn by lot: equal arguments give the same one."""
    is_candidate_first = random.Random(f"{seed}:{pair}").random() < 0.5  # nosec B311
    arms = (Arm.CANDIDATE, Arm.CONTROL)
    return arms if is_candidate_first else (arms[1], arms[0])


def decide_canary(state: CanaryState) -> CanaryDecision:
    """One turn: count what is due, judge, keep to the caps, go to the next slice.

    Without data nothing is switched and nothing judged; if the candidate is in force then, its
    exposure goes on, and the cap ends it.
    """
    canary, limits = _counted(state), state.limits
    if is_below(canary.differences, -limits.tolerance, alpha=limits.alpha):
        return _end(state, canary, CanaryAction.ROLL_BACK, RolloutReason.REGRESSION)
    if is_above(canary.differences, -limits.tolerance, alpha=limits.alpha):
        return _end(state, canary, CanaryAction.PROMOTE, RolloutReason.NOT_WORSE)
    if _is_exposed_enough(state, canary):
        return _end(state, canary, CanaryAction.ROLL_BACK, RolloutReason.EXPOSURE_CAP)
    if state.now_s - canary.began_s >= limits.max_duration_s:
        return _end(state, canary, CanaryAction.ROLL_BACK, RolloutReason.TIME_CAP)
    return _next_slice(state, _begun(state, canary))


def _is_exposed_enough(state: CanaryState, canary: Canary) -> bool:
    """An engine that is silent is not known to have met few requests."""
    limits, met = state.limits, canary.exposed_requests
    if limits.max_exposed_requests is not None and met >= limits.max_exposed_requests:
        return True
    is_few = met < limits.few_requests and state.data_age_s <= limits.max_data_age_s
    most_s = limits.max_exposed_s * (FEW_TIMES if is_few else 1)
    return canary.exposed_until(state.now_s) >= most_s


def _counted(state: CanaryState) -> Canary:
    """Take in the pairs that are due."""
    canary, current = state.canary, state.canary.under_way
    is_exposed = current is not None and current.is_exposing
    canary = replace(
        canary,
        seen_s=state.now_s,
        exposed_requests=canary.exposed_requests + (state.num_arrived if is_exposed else 0),
    )
    due = canary.due(state.now_s, state.limits)
    for first, second in zip(due[::2], due[1::2], strict=True):
        if first.number not in state.tallies or second.number not in state.tallies:
            break
        by_arm = {part.arm: state.tallies[part.number] for part in (first, second)}
        tallies = by_arm.values()
        says = all(t.is_whole and t.judged >= state.limits.min_requests for t in tallies)
        pair = Pair(control=by_arm[Arm.CONTROL], candidate=by_arm[Arm.CANDIDATE])
        canary = replace(
            canary,
            slices=canary.slices[2:],
            pairs=(*canary.pairs, pair) if says else canary.pairs,
            num_set_aside=canary.num_set_aside + (not says),
        )
    return canary


def _begun(state: CanaryState, canary: Canary) -> Canary:
    """Note since when the slice under way is in force."""
    current = canary.under_way
    if current is None or current.began_s is not None or state.in_force_since_s is None:
        return canary
    begun = replace(current, began_s=max(current.asked_s, state.in_force_since_s))
    return replace(canary, slices=(*canary.slices[:-1], begun))


def _next_slice(state: CanaryState, canary: Canary) -> CanaryDecision:
    current, limits, now_s = canary.under_way, state.limits, state.now_s
    hold = CanaryDecision(action=CanaryAction.HOLD, canary=canary)
    if state.data_age_s > limits.max_data_age_s:
        return hold
    if current is not None and (
        current.began_s is None or now_s < current.began_s + limits.slice_s
    ):
        return hold
    number = 0 if current is None else current.number + 1
    arm = order_of(state.seed, number // 2)[number % 2]
    ended = _ended(canary, now_s)
    # Asked for even where the same arm goes on: whichever the lot puts first, a slice begins in the
    # same way.
    following = Slice(number=number, arm=arm, asked_s=now_s)
    return CanaryDecision(
        action=CanaryAction.SWITCH, canary=replace(ended, slices=(*ended.slices, following))
    )


def _ended(canary: Canary, now_s: float) -> Canary:
    """The canary with no slice under way."""
    current = canary.under_way
    if current is None:
        return canary
    return replace(
        canary,
        slices=(*canary.slices[:-1], replace(current, ended_s=now_s)),
        exposed_s=canary.exposed_until(now_s),
    )


def _end(
    state: CanaryState, canary: Canary, action: CanaryAction, reason: RolloutReason
) -> CanaryDecision:
    return CanaryDecision(action=action, canary=_ended(canary, state.now_s), reason=reason)
