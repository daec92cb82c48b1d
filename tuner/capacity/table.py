"""The capacity table's parts: the best settings of a plan, which plans are worth fitting, and the
rate that one carries.

Standings in one draw of the arrivals decide what is worth looking at; each entry that is left gets
the whole search, with several draws, a fit and an interval (:mod:`tuner.capacity.search`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate, undominated
from policies.points import INTERVAL_Z
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.search import BRACKET_RATIO, TIGHTER, bracket, edge, find_capacity
from tuner.spec.errors import TunerError
from tuner.workload.workload import Workload

# Draws of the arrivals for each entry.
NUM_DRAWS = 3
# One draw is off by this share. So settings this near to the best with as many devices are fitted,
# too, and those that carry this much less than fewer devices do are not.
NEAR = 0.97
MOST_NEAR = 2
# N replicas carry N times what one does, give or take this share. So settings farther than that
# from the best with as many devices are not looked at, nor are replicas preferred to such a best.
REPLICAS_OFF = 0.2

# The distance, in half widths of their interval, from the step times that a verdict allows for to
# the fastest ones.
FASTER = (NormalDist().inv_cdf(MIN_CHANCE) + INTERVAL_Z) / INTERVAL_Z

Passes = Callable[[Settings, float], bool]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The highest factor of the load that ``settings`` carry in one draw of the arrivals."""

    settings: Settings
    factor: float

    @property
    def num_devices(self) -> int:
        return self.settings.plan.world_size


def climb(
    options: Sequence[Settings], passes: Passes, limits: tuple[float, float]
) -> Standing | None:
    """The best of ``options``, all of one plan; None if none carries even the least load.

    The others are tried at a load just above what is carried already, so most cost one look.
    """
    best: Standing | None = None
    for settings in options:
        if best is None:
            good, _ = bracket(partial(passes, settings), limits)
            if good is not None:
                best = Standing(settings=settings, factor=good)
            continue
        above = best.factor * BRACKET_RATIO
        if above >= limits[1] or not passes(settings, above):
            continue
        good = edge(partial(passes, settings), (above, limits[1]), start=above)
        best = Standing(settings=settings, factor=above if good is None else good)
    return best


def near(standing: Standing, passes: Passes, limits: tuple[float, float]) -> Standing | None:
    """The standing found, where ``standing`` is a guess."""
    least, greatest = limits
    start = min(standing.factor, greatest / TIGHTER)
    good = edge(partial(passes, standing.settings), (least, greatest), start=start)
    return None if good is None else Standing(settings=standing.settings, factor=good)


def worth_looking(known: Iterable[Standing], guesses: Iterable[Standing]) -> list[Standing]:
    """The guesses that may come near the best of as many devices, or of fewer."""
    known, guesses = list(known), list(guesses)
    return [
        guess
        for guess in guesses
        if guess.factor * (1 + REPLICAS_OFF)
        >= (1 - REPLICAS_OFF) * _best_factor([*known, *guesses], guess.num_devices)
    ]


def worth_fitting(
    found: Iterable[Standing],
    *,
    beside: ParallelPlan | None = None,
    share: float = NEAR,
    most: int = MOST_NEAR,
) -> list[Standing]:
    """For each number of devices the best, at most ``most`` that carry ``share`` of it, and what
    the table may prefer to it (:func:`table_of`): the most replicas, and replicas of what serves on
    fewer devices or is ``beside``. Nothing that fewer devices beat."""
    found = list(found)
    kept: list[Standing] = []
    replicas = set() if beside is None else {beside.replica}
    for count in sorted({s.num_devices for s in found}):
        fewer_factor = _best_factor(found, count - 1)
        own = [s for s in found if s.num_devices == count and s.factor >= NEAR * fewer_factor]
        if not own:
            continue
        own.sort(key=lambda s: -s.factor)
        best_factor = own[0].factor
        close = [s for s in own if s.factor >= share * best_factor][:most]
        about = [s for s in own if s.factor >= (1 - REPLICAS_OFF) * best_factor]
        close += sorted(about, key=lambda s: -s.settings.plan.dp)[:1]
        close += [s for s in about if s.settings.plan.replica in replicas]
        kept += [s for s in own if s in close]
        replicas |= {s.settings.plan.replica for s in close}
    return kept


def _best_factor(found: Iterable[Standing], most_devices: int) -> float:
    return max((s.factor for s in found if s.num_devices <= most_devices), default=0.0)


def check_has_table(workload: Workload) -> float:
    """The workload's rate in requests per second.

    Raises:
        TunerError: it has none: a closed loop, or requests that come at once.
    """
    if workload.closed is not None or workload.rate_rps is None:
        raise TunerError(
            f"workload {workload.source.spec!r}: a capacity table is of rates, and this has none; "
            "name one that arrives over time, as in poisson:rate=4,input=512,output=64"
        )
    return workload.rate_rps


def entry_of(
    asked: CapacityQuestion, standing: Standing, joules_at: Callable[[float], float | None]
) -> CarriedRate | None:
    """The rate with its interval; None if the draws together carry no load.

    The rate is carried with slow steps, as far as the verdict asks for it (``MIN_CHANCE``), and the
    low end by unlucky draws, too; the high end by lucky draws and the fastest steps that may be. A
    rate is taken to be proportional to the speed of steps.

    ``joules_at`` gives the joules a request takes at a factor of the load.
    """
    rate_rps = check_has_table(asked.workload)
    found = find_capacity(asked, num_draws=NUM_DRAWS, start=standing.factor)
    if found.factor is None or found.low is None:
        return None
    high = None
    if found.high is not None:
        high = max(found.high, found.factor) * rate_rps * math.exp(FASTER * asked.interval)
    return CarriedRate(
        settings=asked.settings,
        rate_rps=found.factor * rate_rps,
        low_rps=min(found.low, found.factor) * rate_rps,
        high_rps=high,
        binding=found.binding,
        joules_per_request=joules_at(found.factor),
    )


def table_of(
    workload: Workload,
    sla: Sla,
    entries: Iterable[CarriedRate | None],
    *,
    beside: ParallelPlan | None = None,
) -> CapacityTable:
    """The table of what was found, without entries that cost more and carry no more.

    For each number of devices it has the entry whose low end carries most, unless another may carry
    as much (their intervals overlap) and can be added and given back while others serve: more
    replicas of what the table has for fewer devices, or of the plan ``beside`` that is to be in
    force; else the one with the most replicas. Another pipeline or tensor degree would stop all
    replicas.
    """
    found = [entry for entry in entries if entry is not None]
    return CapacityTable(
        sla=sla,
        mean_input_tokens=float(workload.input_tokens.mean()),
        mean_output_tokens=float(workload.output_tokens.mean()),
        entries=undominated(_preferred(found, beside)),
    )


def _preferred(entries: Sequence[CarriedRate], beside: ParallelPlan | None) -> list[CarriedRate]:
    """One entry for each number of devices that carries more than fewer do."""
    kept: list[CarriedRate] = []
    for count in sorted({entry.num_devices for entry in entries}):
        own = [entry for entry in entries if entry.num_devices == count]
        best = max(own, key=lambda entry: (entry.low_rps, _level(entry), entry.rate_rps))
        fewer_rps = max((entry.low_rps for entry in kept), default=0.0)
        about = [e for e in own if e.low_rps > fewer_rps and _may_carry_as_much(e, best)]
        before = kept[-1].settings.plan if kept else None
        if about:
            kept.append(max(about, key=partial(_ease, beside=beside, before=before)))
    return kept


def _ease(
    entry: CarriedRate, *, beside: ParallelPlan | None, before: ParallelPlan | None
) -> tuple[bool, bool, int, float]:
    """How easily it is gone to from the plan in force and from the next smaller entry."""
    replica = entry.settings.plan.replica
    is_like = [plan is not None and plan.replica == replica for plan in (beside, before)]
    return (is_like[0], is_like[1], entry.num_replicas, entry.low_rps)


def _may_carry_as_much(entry: CarriedRate, best: CarriedRate) -> bool:
    """Whether their intervals overlap for more than want of knowledge: what was never run does not
    count as equal to what was."""
    if _level(entry) < _level(best):
        return False
    if entry.rate_rps < (1 - REPLICAS_OFF) * best.rate_rps:
        return False
    return entry.high_rps is None or entry.high_rps >= best.low_rps


def _level(entry: CarriedRate) -> int:
    """How well its rate is known."""
    return list(Fidelity).index(entry.fidelity)
