"""The capacity table's parts: the best settings of a plan, which plans are worth fitting, and the
rate that one carries.

Standings in one draw of the arrivals decide what is worth looking at; each entry that is left gets
the whole search, with several draws, a fit and an interval (:mod:`tuner.capacity.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate, undominated
from policies.sla import Sla
from tuner.capacity.probe import Asked
from tuner.capacity.search import BRACKET_RATIO, TIGHTER, bracket, edge, find_capacity
from tuner.spec.errors import TunerError
from tuner.workload.workload import Workload

# Draws of the arrivals for each entry.
NUM_DRAWS = 3
# One draw is off by that much: settings so near to the best of as many devices are fitted too, and
# those that carry so much less than fewer devices are not.
NEAR = 0.97
MOST_NEAR = 2
# Replicas carry about as many times what one does, give or take that share: what is farther from
# the best of as many devices is not looked at.
REPLICAS_OFF = 0.2

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
    options: Sequence[Settings], passes: Passes, limits: tuple[float, float], *, start: float = 1.0
) -> Standing | None:
    """The best of ``options``, all of one plan; None where none carries even the least load.

    The others are tried at a load just above what is carried already, so most cost one look.
    """
    best: Standing | None = None
    for settings in options:
        if best is None:
            good, _ = bracket(partial(passes, settings), limits, start=start)
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
    """Of the guesses those that may come near the best of as many devices, or of fewer."""
    known, guesses = list(known), list(guesses)
    return [
        guess
        for guess in guesses
        if guess.factor * (1 + REPLICAS_OFF)
        >= (1 - REPLICAS_OFF) * _best_factor([*known, *guesses], guess.num_devices)
    ]


def worth_fitting(found: Iterable[Standing]) -> list[Standing]:
    """For each number of devices the best, and what is near it; nothing that fewer devices beat."""
    found = list(found)
    kept: list[Standing] = []
    for count in sorted({s.num_devices for s in found}):
        own = sorted((s for s in found if s.num_devices == count), key=lambda s: -s.factor)
        fewer = _best_factor(found, count - 1)
        least = max(NEAR * own[0].factor, NEAR * fewer)
        kept += [s for s in own if s.factor >= least][:MOST_NEAR]
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
    asked: Asked, standing: Standing, joules_at: Callable[[float], float | None]
) -> CarriedRate | None:
    """The rate with its interval; None where the draws together carry no load.

    ``joules_at`` gives the joules a request takes at a factor of the load.
    """
    rate_rps = check_has_table(asked.workload)
    found = find_capacity(asked, num_draws=NUM_DRAWS, start=standing.factor)
    if found.factor is None or found.low is None:
        return None
    high = None if found.high is None else max(found.high, found.factor) * rate_rps
    return CarriedRate(
        settings=asked.settings,
        rate_rps=found.factor * rate_rps,
        low_rps=min(found.low, found.factor) * rate_rps,
        high_rps=high,
        binding=found.binding,
        joules_per_request=joules_at(found.factor),
    )


def table_of(workload: Workload, sla: Sla, entries: Iterable[CarriedRate | None]) -> CapacityTable:
    """The table of what was found, without what costs more and carries no more.

    Of as many devices the most replicas, where these carry about as much (``NEAR``) as the best:
    one more or less is made while others serve, another pipeline or tensor degree is not.
    """
    found = [entry for entry in entries if entry is not None]
    return CapacityTable(
        sla=sla,
        mean_input_tokens=float(workload.input_tokens.mean()),
        mean_output_tokens=float(workload.output_tokens.mean()),
        entries=undominated(
            max(about, key=lambda entry: (entry.settings.plan.dp, entry.rate_rps))
            for about in _about_the_best(found)
        ),
    )


def _about_the_best(entries: list[CarriedRate]) -> Iterator[list[CarriedRate]]:
    """For each number of devices what carries about as much as the best."""
    for count in {entry.num_devices for entry in entries}:
        own = [entry for entry in entries if entry.num_devices == count]
        best = max(entry.rate_rps for entry in own)
        yield [entry for entry in own if entry.rate_rps >= NEAR * best]
