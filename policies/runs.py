"""P(SLA met) from simulated runs of the same settings: slow steps, quick steps, other draws.

What makes a run worse is that steps are slower than their model says: steps with prompts, and
steps of decodes (:mod:`policies.slowness`). Of each draw of the requests each constraint has a
*room*: how much slower, in standard errors of step times, all steps may get before it is missed. A
run with only the steps of prompts slow shows whose slowness uses it up. The room of a draw is the
one that a single constraint would have that is met as likely as all of them together. It differs
from draw to draw; its mean and spread over the draws are those of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from statistics import NormalDist, fmean

from policies.constraint import Constraint, Metric, Op
from policies.slowness import Limit, Spread, chance_by

# Nothing was simulated farther out than this many standard errors, so P is at most 0.999.
MOST_ROOM = 3.0
# A bound is looked for within this factor of the value.
WIDEST = 1e4
NUM_HALVINGS = 50
NUM_PARTS = 20


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """The metrics of one run, whose steps were ``slowness`` standard errors slower than the step
    model says, of draw number ``draw`` of the requests; with ``prompts_alone`` only those with
    prompts were."""

    slowness: float
    draw: int
    metrics: Mapping[str, float]
    prompts_alone: bool = False


@dataclass(frozen=True)
class Runs:
    """Runs of one settings under one workload. Draw 0 has runs of several slownesses, which show
    how metrics follow; every other draw has at least one, whose distance to them it keeps.
    ``correlation`` is that of the slowness of steps with prompts and of decodes, ``prompts_mean``
    and ``decodes_mean`` what they are on average, and ``spreads`` how far they may scatter about
    that, each as likely; without a run that tells them apart they are one."""

    runs: tuple[SimulatedRun, ...]
    correlation: float = 1.0
    prompts_mean: float = 0.0
    decodes_mean: float = 0.0
    spreads: tuple[Spread, ...] = (Spread(),)
    _chances: dict[tuple[tuple[Constraint, ...], int], float] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _lines: dict[tuple[int, str], tuple[_Curve, float] | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _shares: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)

    def chance(self, constraints: Sequence[Constraint], *, unseen: int = 0) -> float:
        """The chance that another run meets all ``constraints``; the most that it may be once
        ``unseen`` more draws are known."""
        key = tuple(constraints), unseen
        if key not in self._chances:
            rooms = [self._joint_room(self._limits(draw, constraints)) for draw in self.draws]
            self._chances[key] = _chance([*rooms, *[MOST_ROOM] * unseen])
        return self._chances[key]

    def room(self, draw: int, constraints: Sequence[Constraint]) -> float:
        """How slow all steps of ``draw`` may be, in standard errors, within -3..3."""
        rooms = (self._room(draw, c) for c in constraints)
        return max(-MOST_ROOM, min([MOST_ROOM, *rooms]))

    def find_bound(
        self, constraint: Constraint, others: Sequence[Constraint], chance: float
    ) -> float | None:
        """The tightest bound of ``constraint`` that is met with ``chance``, together with
        ``others``; None: there is none."""
        limits = {draw: self._limits(draw, others) for draw in self.draws}

        def passes(cost: float) -> bool:
            bound = replace(constraint, bound=_value(constraint, cost))
            rooms = [self._joint_room([*limits[d], *self._limits(d, [bound])]) for d in limits]
            return _chance(rooms) >= chance

        value = self._first.metrics.get(constraint.key)
        if value is None or not 0 < value < math.inf:
            return None
        tight, loose = _cost(constraint, value), _loosest(constraint, value)
        tight -= loose - tight
        if not passes(loose):
            return None
        for _ in range(NUM_HALVINGS):
            middle = (tight + loose) / 2
            tight, loose = (tight, middle) if passes(middle) else (middle, loose)
        return _value(constraint, loose)

    @cached_property
    def draws(self) -> tuple[int, ...]:
        return tuple(sorted({run.draw for run in self.runs}))

    @property
    def _first(self) -> SimulatedRun:
        return min(self.runs, key=lambda run: (run.draw, abs(run.slowness)))

    def _limits(self, draw: int, constraints: Sequence[Constraint]) -> list[Limit]:
        found = []
        for constraint in constraints:
            share = self._share(constraint)
            mean = share * self.prompts_mean + (1 - share) * self.decodes_mean
            found.append(Limit(room=self._room(draw, constraint) - mean, share=share))
        return found

    def _joint_room(self, limits: Sequence[Limit]) -> float:
        """The room of one constraint that is met as likely as all ``limits``, within -3..3."""
        chance = chance_by(limits, self.correlation if self._alone else 1.0, self.spreads)
        if not 0 < chance < 1:
            return MOST_ROOM if chance else -MOST_ROOM
        return max(-MOST_ROOM, min(MOST_ROOM, NormalDist().inv_cdf(chance)))

    @cached_property
    def _alone(self) -> SimulatedRun | None:
        return next((run for run in self.runs if run.prompts_alone), None)

    def _share(self, constraint: Constraint) -> float:
        """How much of what slow steps do to ``constraint`` those with prompts do, 0 to 1."""
        if constraint.key not in self._shares:
            self._shares[constraint.key] = self._share_of(constraint)
        return self._shares[constraint.key]

    def _share_of(self, constraint: Constraint) -> float:
        alone, curve = self._alone, self._curve(constraint)
        if alone is None or curve is None:
            return 1.0
        base = curve.at(0.0)
        whole, own = curve.at(alone.slowness) - base, _cost_in(alone.metrics, constraint) - base
        return max(0.0, min(1.0, own / whole)) if whole > 0 else 1.0

    def _room(self, draw: int, constraint: Constraint) -> float:
        key = draw, constraint.key
        if key not in self._lines:
            self._lines[key] = self._line(draw, constraint)
        if (line := self._lines[key]) is None:
            return -MOST_ROOM
        curve, apart = line
        return curve.reaches(_cost(constraint, constraint.bound) - apart)

    def _line(self, draw: int, constraint: Constraint) -> tuple[_Curve, float] | None:
        """How what ``constraint`` bounds follows slowness, and how far ``draw`` lies from that;
        whatever the bound is. None where it was not observed."""
        curve = self._curve(constraint)
        if curve is None:
            return None
        apart = []
        for run in self.runs:
            if run.draw == draw and not run.prompts_alone:
                cost = _cost_in(run.metrics, constraint)
                if not math.isfinite(cost):
                    return None
                apart.append(cost - curve.at(run.slowness))
        return curve, fmean(apart)

    def _curve(self, constraint: Constraint) -> _Curve | None:
        found = [
            (run.slowness, _cost_in(run.metrics, constraint))
            for run in sorted(self.runs, key=lambda run: run.slowness)
            if run.draw == self.draws[0] and not run.prompts_alone
        ]
        known = [(slowness, cost) for slowness, cost in found if math.isfinite(cost)]
        if not known or not math.isfinite(_cost_in(self._first.metrics, constraint)):
            return None
        # Slower steps never make a run better; where a simulation says so, that was luck.
        worst = -math.inf
        points = []
        for slowness, cost in known:
            worst = max(worst, cost)
            points.append((slowness, worst))
        return _Curve(tuple(points))


@dataclass(frozen=True)
class _Curve:
    """Costs that rise with slowness: straight between the points, and on with the last slopes."""

    points: tuple[tuple[float, float], ...]

    def at(self, slowness: float) -> float:
        for (left, low), (right, high) in self._pieces:
            if slowness <= right:
                return low + (high - low) * (slowness - left) / (right - left)
        return self.points[-1][1] if not self._pieces else self._beyond(slowness)

    def reaches(self, budget: float) -> float:
        """The slowness at which the cost is ``budget``, within -3..3."""
        if budget < self.points[0][1] and self._slope(0) > 0:
            return max(
                -MOST_ROOM, self.points[0][0] + (budget - self.points[0][1]) / self._slope(0)
            )
        if budget < self.points[0][1]:
            return -MOST_ROOM
        for (left, low), (right, high) in self._pieces:
            if low <= budget < high:
                return left + (right - left) * (budget - low) / (high - low)
        slope = self._slope(-1)
        if slope <= 0:
            return MOST_ROOM
        last, cost = self.points[-1]
        return min(MOST_ROOM, last + (budget - cost) / slope)

    @property
    def _pieces(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(zip(self.points, self.points[1:], strict=False))

    def _slope(self, piece: int) -> float:
        if not self._pieces:
            return 0.0
        (left, low), (right, high) = self._pieces[piece]
        return (high - low) / (right - left)

    def _beyond(self, slowness: float) -> float:
        last, cost = self.points[-1]
        return cost + self._slope(-1) * (slowness - last)


def _chance(rooms: Sequence[float]) -> float:
    """That a standard normal slowness is below the room of the next draw. One draw with more room
    than the others shows how far draws lie apart, but never makes it less likely: the rooms are
    capped where that says more."""
    return max(_chance_of_alike([min(room, most) for room in rooms]) for most in set(rooms))


def _chance_of_alike(rooms: Sequence[float]) -> float:
    """The next draw's room is as far from their mean as Student's t says of so few: a few draws
    that are alike may be so by luck."""
    count = len(rooms)
    if count == 1:
        return NormalDist().cdf(rooms[0])
    mean = fmean(rooms)
    # Python's own variance reckons in fractions: of eight rooms it took 140 µs, this takes 3.
    variance = math.fsum((room - mean) ** 2 for room in rooms) / (count - 1)
    spread = math.sqrt(variance * (1 + 1 / count))
    return fmean(NormalDist().cdf(mean + spread * t) for t in _student(count - 1))


@cache
def _student(freedom: int) -> tuple[float, ...]:
    """Student's t at the middles of ``NUM_PARTS`` equal shares (Cornish and Fisher's series)."""
    found = []
    for part in range(NUM_PARTS):
        z = NormalDist().inv_cdf((part + 0.5) / NUM_PARTS)
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        found.append(z + first / freedom + second / freedom**2)
    return tuple(found)


def _cost_in(metrics: Mapping[str, float], constraint: Constraint) -> float:
    value = metrics.get(constraint.key)
    return math.inf if value is None else _cost(constraint, value)


def _cost(constraint: Constraint, value: float) -> float:
    """A number that is higher the worse ``value`` is: shares as they are, the others as logs."""
    if constraint.metric is Metric.ATTAINMENT:
        return -value
    if value <= 0:
        return -math.inf if constraint.op is Op.AT_MOST else math.inf
    return math.log(value) if constraint.op is Op.AT_MOST else -math.log(value)


def _value(constraint: Constraint, cost: float) -> float:
    if constraint.metric is Metric.ATTAINMENT:
        return min(1.0, -cost)
    return math.exp(cost if constraint.op is Op.AT_MOST else -cost)


def _loosest(constraint: Constraint, value: float) -> float:
    if constraint.metric is Metric.ATTAINMENT:
        return -1e-6
    return _cost(constraint, value) + math.log(WIDEST)
