"""How much an engine was asked for, minute by minute: what a forecast is made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.errors import PolicyInputError

Rates = npt.NDArray[np.float64]

SLOT_S = 60.0
DAY_S = 86_400.0
# Fewer requests than this count as this many: a rate cannot be below zero.
LEAST_COUNT = 2.0


@dataclass(frozen=True, kw_only=True)
class LoadSlot:
    """What arrived in one slot; ``start_s`` since any fixed moment, a multiple of the slot.

    ``seen_s`` of its seconds were observed; requests and tokens are those of these seconds.

    Raises:
        PolicyInputError: a number below 0 or not finite.
    """

    start_s: float
    seen_s: float
    requests: float
    input_tokens: float
    output_tokens: float

    def __post_init__(self) -> None:
        for name in ("seen_s", "requests", "input_tokens", "output_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PolicyInputError(f"load slot: {name}={getattr(self, name)}: below 0")
        if not math.isfinite(self.start_s):
            raise PolicyInputError(f"load slot: start_s={self.start_s}: must be finite")

    def rate_rps(self, mix: tuple[float, float] | None) -> float:
        """As :func:`rate_of`; ``mix`` None: requests as they came."""
        if not self.seen_s:
            return 0.0
        if mix is None:
            return self.requests / self.seen_s
        return rate_of(self.input_tokens, self.output_tokens, mix) / self.seen_s


def luck_of(requests: float) -> float:
    """The relative standard deviation of a steady load's rate where it is told from so many
    requests: their number varies as Poisson's does, and their lengths as an exponential's do."""
    return math.sqrt(2 / max(requests, LEAST_COUNT))


def margin_of(luck: float, chance: float) -> float:
    """The share by which luck, a relative standard deviation, takes a rate beyond its load with no
    more than 1 - ``chance``."""
    return NormalDist().inv_cdf(max(chance, 0.5)) * luck


def surely(rate_rps: float, luck: float, chance: float) -> float:
    """The load that a rate, ``luck`` off as a relative standard deviation, would exceed by luck
    with no more than 1 - ``chance``."""
    return rate_rps * max(1 - margin_of(luck, chance), 0.0)


def rate_of(input_tokens: float, output_tokens: float, mix: tuple[float, float]) -> float:
    """Requests of ``mix`` that bring at least these input and output tokens.

    The larger of the two ratios counts: a load of longer outputs than the mix has is no smaller for
    having few inputs. So a capacity that is known for one mix is never overestimated for another.
    """
    return max(input_tokens / mix[0], output_tokens / mix[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadHistory:
    """Rates f8[N], requests of one mix a second, of consecutive slots; the newest is last.

    ``luck`` f8[N]: how far the rate of a slot may be off that of the load behind it, as a relative
    standard deviation (None: not at all).

    Raises:
        PolicyInputError: a rate below 0 or not finite, a slot of 0 s, or another number of lucks.
    """

    rates_rps: Rates
    slot_s: float = SLOT_S
    luck: Rates | None = None

    def __post_init__(self) -> None:
        if self.slot_s <= 0:
            raise PolicyInputError(f"load history: slot_s={self.slot_s}: must be above 0")
        if not (np.isfinite(self.rates_rps).all() and (self.rates_rps >= 0).all()):
            raise PolicyInputError("load history: rates must be finite and at least 0")
        if self.luck is not None and len(self.luck) != len(self.rates_rps):
            raise PolicyInputError(
                f"load history: luck of {len(self.luck)} slots for {len(self.rates_rps)} rates"
            )

    def __len__(self) -> int:
        return len(self.rates_rps)

    def to_json(self) -> dict[str, Any]:
        return {
            "rates_rps": self.rates_rps.tolist(),
            "slot_s": self.slot_s,
            "luck": None if self.luck is None else self.luck.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadHistory:
        luck = data["luck"]
        return cls(
            rates_rps=np.array(data["rates_rps"], dtype=np.float64),
            slot_s=data["slot_s"],
            luck=None if luck is None else np.array(luck, dtype=np.float64),
        )

    def until(self, num_slots: int) -> LoadHistory:
        """The history as it was after its first ``num_slots``."""
        return self._part(slice(num_slots))

    def between(self, first: int, end: int) -> LoadHistory:
        """Slots ``first`` to ``end``, the latter not included."""
        return self._part(slice(first, end))

    def newest(self, num_slots: int) -> LoadHistory:
        """Its last slots."""
        return self._part(slice(-num_slots, None))

    @property
    def mean_luck(self) -> float:
        """How far the mean of all rates may be off by luck; at most all of it."""
        lucks = self._lucks
        return min(float(np.sqrt(np.sum(lucks**2))) / len(lucks), 1.0) if len(lucks) else 0.0

    def before(self, later: LoadHistory) -> LoadHistory:
        """This history with ``later`` right after it."""
        return LoadHistory(
            rates_rps=np.concatenate([self.rates_rps, later.rates_rps]),
            slot_s=self.slot_s,
            luck=np.concatenate([self._lucks, later._lucks]),
        )

    @property
    def peak_rps(self) -> float:
        """The highest rate of any slot, without what the luckiest of as many slots has on top of a
        steady load; at least the mean. A capacity carries a *load*: the requests that happen to
        come at once in a minute of it are counted in already.
        """
        rates = self.rates_rps
        if not len(rates):
            return 0.0
        least = np.maximum(1 - luckiest(len(rates)) * self._lucks, 0.0)
        return float(max(np.mean(rates), np.max(rates * least)))

    @property
    def bounds_rps(self) -> tuple[Rates, Rates]:
        """Rates f8[N] that the load of each slot surely had, and surely did not exceed: one
        standard deviation off."""
        least = self.rates_rps * np.maximum(1 - self._lucks, 0.0)
        return least, self.rates_rps * (1 + self._lucks)

    @property
    def _lucks(self) -> Rates:
        return np.zeros(len(self.rates_rps)) if self.luck is None else self.luck

    def _part(self, which: slice) -> LoadHistory:
        luck = None if self.luck is None else self.luck[which]
        return LoadHistory(rates_rps=self.rates_rps[which], slot_s=self.slot_s, luck=luck)

    @classmethod
    def of(
        cls,
        slots: Iterable[LoadSlot],
        *,
        mix: tuple[float, float] | None = None,
    ) -> LoadHistory:
        """The history of ``slots``. A slot that nobody saw keeps the rate before it: no data is not
        silence. If less than half as much was seen of the last slot as of the one before, it tells
        too little to count."""
        kept = sorted((s for s in slots if s.seen_s > 0), key=lambda s: s.start_s)
        if len(kept) > 1 and kept[-1].seen_s < kept[-2].seen_s / 2:
            kept.pop()
        filled = list(_fill(kept))
        return cls(
            rates_rps=np.array([slot.rate_rps(mix) for slot in filled]),
            slot_s=SLOT_S,
            luck=np.array([luck_of(slot.requests) for slot in filled]),
        )


def luckiest(count: int) -> float:
    """How many standard deviations the highest of ``count`` normal numbers lies above their mean,
    on average (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _fill(slots: Sequence[LoadSlot]) -> Iterator[LoadSlot]:
    """The slots, and for each that is missing the one before it."""
    before: LoadSlot | None = None
    for slot in slots:
        if before is not None:
            yield from [before] * (round((slot.start_s - before.start_s) / SLOT_S) - 1)
        yield slot
        before = slot
