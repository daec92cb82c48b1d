"""The highest load that meets an SLA: bracketed, probed in several draws, fitted.

A finder that bisects on single noisy runs stops wherever one of them was lucky. Here bisection in
one draw only finds the neighbourhood. There every draw is probed at the same rates (the same draws
at every rate, so that differences are paired), P(SLA met) is fitted as a falling function of the
rate (isotonic regression), and the load is where the fit crosses the least P of the verdict rule.
Where the first draw was so lucky, or so unlucky, that it crosses elsewhere, all draws are probed
there, too. Draws are then drawn anew, with replacement, for the interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product, takewhile

import numpy as np

from policies.constraint import Constraint
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.capacity.probe import CapacityQuestion, Probe, probe
from tuner.spec.errors import TunerError
from tuner.workload.judged import check_judged
from tuner.workload.workload import FloatArray, Workload

# Rates around the crossing of the first draw at which all draws are probed.
GRID = (0.8, 0.88, 0.94, 1.0, 1.06, 1.12, 1.2)
# P is interpolated as a line only between rates that are no farther apart than this ratio.
WIDEST_GAP = 1.25
NUM_DRAWS = 5
NUM_BOOTSTRAPS = 400
# Bisection ends within this ratio of two rates.
BRACKET_RATIO = 1.06
# If every look simulates a whole plan, the edge is found within this ratio.
TIGHTER = 1.05
# Rates farther than this from the workload's own, or with more requests than this, are not tried.
MOST_DOUBLINGS = 10
MOST_REQUESTS = 100_000
# A cliff: attainment falls by this much within this much more load.
CLIFF_LOAD = 1.1
CLIFF_FALL = 0.1

# How many looks the bisection is expected to take: at its ends, then halving.
EXPECTED_BRACKET = 8

# Called with the number of looks done, and the number expected in all so far.
OnProbe = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """How the share of requests that meet the SLA changes just above the capacity."""

    attainment: float
    attainment_above: float

    @property
    def is_cliff(self) -> bool:
        """Whether it falls off within ``CLIFF_LOAD``."""
        return self.attainment - self.attainment_above >= CLIFF_FALL


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Factors of the asked workload's load. ``factor`` None: not even the lowest load probed is
    carried. ``is_at_least``: the highest load probed is carried too, so there may be more.
    """

    factor: float | None
    low: float | None
    high: float | None
    is_at_least: bool
    binding: Constraint | None
    cliff: Cliff | None
    probes: tuple[Probe, ...]


class CapacityStopped(KeyboardInterrupt):
    """Ctrl-C in the middle of the search: ``found`` is what the loads looked at by then show,
    without an interval."""

    def __init__(self, found: Capacity) -> None:
        super().__init__()
        self.found = found


def find_capacity(
    asked: CapacityQuestion,
    *,
    num_draws: int = NUM_DRAWS,
    start: float = 1.0,
    on_probe: OnProbe = lambda *_: None,
) -> Capacity:
    """The highest load of ``asked.workload`` that ``asked.settings`` carry within the SLA.

    ``start`` is the factor to look at first: a good guess saves looks.

    Raises:
        TunerError: a workload of one request, or whose requests all come at once, has no rate; or
            a bound of the SLA says nothing of it.
        CapacityStopped: Ctrl-C, when some load was looked at; before that KeyboardInterrupt.
    """
    check_has_rate(asked.workload)
    check_judged(asked.workload, asked.sla)
    seen: dict[tuple[float, int], Probe] = {}
    try:
        return _search(asked, seen, num_draws, start, on_probe)
    except KeyboardInterrupt as stopped:
        if not seen:
            raise
        probes = tuple(seen.values())
        raise CapacityStopped(_open_ended(_carried(probes), probes, asked)) from stopped


def _search(
    asked: CapacityQuestion,
    seen: dict[tuple[float, int], Probe],
    num_draws: int,
    start: float,
    on_probe: OnProbe,
) -> Capacity:
    """As :func:`find_capacity`; ``seen`` gets every probe, by factor and draw."""
    # After the bisection: the grid and the two loads of the cliff in every draw.
    afterwards = (len(GRID) + 2) * num_draws
    expected = EXPECTED_BRACKET + afterwards

    def look(factor: float, draw: int) -> Probe:
        factor = reachable(asked.workload, factor)
        if (factor, draw) not in seen:
            seen[factor, draw] = probe(asked, factor, draw)
            on_probe(len(seen), max(expected, len(seen)))
        return seen[factor, draw]

    good, bad = bracket(
        lambda factor: look(factor, 0).is_dependable, limits_of(asked.workload), start=start
    )
    if good is None or bad is None:
        return _open_ended(good, tuple(seen.values()), asked)
    expected = len(seen) + afterwards - 1  # the first draw has been at the middle of the grid
    factors = [good * step for step in GRID]
    while factors:
        for factor, draw in product(factors, range(num_draws)):
            look(factor, draw)
        factors = _beyond(_table(seen, num_draws), asked.workload)
        expected += len(factors) * num_draws
    table = _table(seen, num_draws)
    if _fitted(table)[0] < MIN_CHANCE:
        return _open_ended(None, tuple(seen.values()), asked)
    if _fitted(table)[-1] >= MIN_CHANCE:
        return _open_ended(max(table), tuple(seen.values()), asked)
    found = _crossing(table)
    low, high = (reachable(asked.workload, end) for end in _interval(table))
    above = [look(more_load(asked.workload, found, CLIFF_LOAD), draw) for draw in range(num_draws)]
    at = [look(found, draw) for draw in range(num_draws)]
    return Capacity(
        factor=reachable(asked.workload, found),
        low=low,
        high=high,
        is_at_least=False,
        binding=binding_of(above, asked.sla),
        cliff=Cliff(attainment=mean_attainment(at), attainment_above=mean_attainment(above)),
        probes=tuple(seen.values()),
    )


def check_has_rate(workload: Workload) -> None:
    """Raises TunerError where there is no rate to change."""
    if workload.closed is None and workload.rate_rps is None:
        raise TunerError(
            f"workload {workload.source.spec!r}: {len(workload)} requests without time between "
            "them have no rate; name a workload that lasts"
        )


def limits_of(workload: Workload) -> tuple[float, float]:
    """The least and the greatest factor of its load that is looked at."""
    closed, count = workload.closed, len(workload)
    least = 2.0**-MOST_DOUBLINGS if closed is None else 1 / closed.concurrency
    return least, max(1.0, min(2.0**MOST_DOUBLINGS, MOST_REQUESTS / count))


def bracket(
    passes: Callable[[float], bool],
    limits: tuple[float, float],
    *,
    start: float = 1.0,
    ratio: float = BRACKET_RATIO,
    stride: float = 2.0,
) -> tuple[float | None, float | None]:
    """A factor that passes and one, at most ``ratio`` higher, that does not. None: even the least
    does not pass, or even the greatest does. From ``start`` it goes up or down by factors of
    ``stride``."""
    least, greatest = limits
    good: float | None = None
    bad: float | None = None
    factor = min(max(start, least), greatest)
    while good is None or bad is None:
        if passes(factor):
            good = factor
            if factor >= greatest:
                return good, None
            factor = min(stride * factor, greatest)
        else:
            bad = factor
            if factor <= least:
                return None, bad
            factor = max(factor / stride, least)
        if good is not None and bad is not None:
            break
    while bad / good > ratio:
        middle = math.sqrt(good * bad)
        if passes(middle):
            good = middle
        else:
            bad = middle
    return good, bad


def edge(
    passes: Callable[[float], bool], limits: tuple[float, float], *, start: float
) -> float | None:
    """A factor below the greatest that passes and, ``TIGHTER`` times higher, does not.

    The greatest is known not to pass. ``passes`` is expensive, and ``start`` a good guess: it looks
    next to it first, then with ever longer strides. None: not even the least passes.
    """
    least, greatest = limits
    good: float | None = None
    bad = greatest
    factor, stride = min(max(start, least), greatest / TIGHTER), TIGHTER
    while good is None or bad / good > TIGHTER * (1 + 1e-9):
        if passes(factor):
            good = factor
        elif factor <= least:
            return None
        else:
            bad = factor
        if good is None:
            factor = max(least, factor / stride)
        elif good * stride < bad:
            factor = good * stride
        else:
            factor = math.sqrt(good * bad)
        stride = min(stride * stride, 2.0)
    return good


def _carried(probes: Sequence[Probe]) -> float | None:
    """The highest factor that is carried in the draws looked at, below all that are not."""
    chances: dict[float, list[float]] = defaultdict(list)
    for each in probes:
        chances[each.factor].append(each.chance)
    good = takewhile(lambda factor: np.mean(chances[factor]) >= MIN_CHANCE, sorted(chances))
    return max(good, default=None)


def _open_ended(good: float | None, probes: tuple[Probe, ...], asked: CapacityQuestion) -> Capacity:
    missing = [p for p in probes if not p.is_dependable]
    return Capacity(
        factor=good,
        low=good,
        high=None,
        is_at_least=good is not None,
        binding=binding_of(missing[-1:], asked.sla) if missing else None,
        cliff=None,
        probes=probes,
    )


def reachable(workload: Workload, factor: float) -> float:
    """The factor itself; of a closed loop that of a whole number of clients."""
    closed = workload.closed
    least, greatest = limits_of(workload)
    factor = min(max(factor, least), greatest)
    if closed is None:
        return factor
    return max(1, math.floor(factor * closed.concurrency + 1e-9)) / closed.concurrency


def more_load(workload: Workload, factor: float, times: float) -> float:
    """``times`` as much load as at ``factor``; of a closed loop at least one client more."""
    closed = workload.closed
    one_more = 0.0 if closed is None else reachable(workload, factor) + 1 / closed.concurrency
    return max(factor * times, one_more)


def _table(seen: dict[tuple[float, int], Probe], num_draws: int) -> dict[float, list[float]]:
    """Chances by factor, one a draw, of the factors at which all draws were probed."""
    by_factor: dict[float, list[float]] = defaultdict(list)
    for factor, draw in sorted(seen):
        by_factor[factor].append(seen[factor, draw].chance)
    return {f: chances for f, chances in by_factor.items() if len(chances) == num_draws}


def _beyond(table: dict[float, list[float]], workload: Workload) -> list[float]:
    """The next factor to probe where the fit crosses below or above all of ``table``, or in a gap
    of it; none where it crosses between two neighbours, or nothing further is looked at."""
    fitted, factors = _fitted(table), list(table)
    if fitted[0] < MIN_CHANCE:
        wanted = limits_of(workload)[0]
    elif fitted[-1] >= MIN_CHANCE:
        wanted = more_load(workload, factors[-1], GRID[-1])
    else:
        above = int(np.flatnonzero(fitted >= MIN_CHANCE)[-1])
        good, bad = factors[above : above + 2]
        if bad / good <= WIDEST_GAP:
            return []
        wanted = math.sqrt(good * bad)
    wanted = reachable(workload, wanted)
    return [] if wanted in table else [wanted]


def _fitted(table: dict[float, list[float]]) -> FloatArray:
    return fit_falling(np.array(list(table)), np.array([np.mean(row) for row in table.values()]))


def _crossing(table: dict[float, list[float]], draws: Sequence[int] | None = None) -> float:
    """The highest factor at which the fitted P is ``MIN_CHANCE``."""
    factors = np.array(list(table))
    chosen = list(range(len(next(iter(table.values()))))) if draws is None else list(draws)
    chances = np.array([np.mean(np.array(row)[chosen]) for row in table.values()])
    return crossing_of(factors, chances)


def crossing_of(factors: FloatArray, chances: FloatArray) -> float:
    """Where a falling fit of P at rising ``factors`` crosses ``MIN_CHANCE``, between the two."""
    fitted = fit_falling(factors, chances)
    if fitted[0] < MIN_CHANCE:
        return float(factors[0])
    above = int(np.flatnonzero(fitted >= MIN_CHANCE)[-1])
    if above == len(factors) - 1 or fitted[above] == fitted[above + 1]:
        return float(factors[above])
    share = (fitted[above] - MIN_CHANCE) / (fitted[above] - fitted[above + 1])
    return float(factors[above] + share * (factors[above + 1] - factors[above]))


def fit_falling(rates: FloatArray, values: FloatArray) -> FloatArray:
    """The nearest values, by least squares, that never rise with ``rates``, which rise."""
    from scipy.optimize import isotonic_regression

    assert (np.diff(rates) > 0).all(), "rates stand in order"
    return np.asarray(isotonic_regression(values, increasing=False).x, dtype=np.float64)


def _interval(table: dict[float, list[float]]) -> tuple[float, float]:
    """The 90 % interval of the crossing over draws drawn anew; the same draws at every rate."""
    rng = np.random.default_rng(0xB007)
    count = len(next(iter(table.values())))
    found = [
        _crossing(table, rng.integers(count, size=count).tolist()) for _ in range(NUM_BOOTSTRAPS)
    ]
    low, high = np.percentile(found, (5, 95))
    return float(low), float(high)


def binding_of(probes: Sequence[Probe], sla: Sla) -> Constraint | None:
    """The constraint with least left of its budget, over the draws that miss."""
    if not probes:
        return None
    return min(sla.per_run, key=lambda c: np.median([p.margin(c) for p in probes]))


def mean_attainment(probes: Sequence[Probe]) -> float:
    """The mean share of requests that met the latencies each is held to."""
    return float(np.mean([p.attainment for p in probes]))
