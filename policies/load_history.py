"""How much an engine was asked for, minute by minute: what a forecast is made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.errors import PolicyInputError

SLOT_S = 60.0
DAY_S = 86_400.0


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


def rate_of(input_tokens: float, output_tokens: float, mix: tuple[float, float]) -> float:
    """Requests of ``mix`` that bring at least these input and output tokens.

    The larger of the two ratios counts: a load of longer outputs than the mix has is no smaller
    for having few inputs. A capacity that is known for one mix is so never taken for more.
    """
    return max(input_tokens / mix[0], output_tokens / mix[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadHistory:
    """Rates f8[N], requests of one mix a second, of consecutive slots; the newest is last.

    Raises:
        PolicyInputError: a rate below 0 or not finite, or a slot of 0 s.
    """

    rates_rps: npt.NDArray[np.float64]
    slot_s: float = SLOT_S

    def __post_init__(self) -> None:
        if self.slot_s <= 0:
            raise PolicyInputError(f"load history: slot_s={self.slot_s}: must be above 0")
        if not (np.isfinite(self.rates_rps).all() and (self.rates_rps >= 0).all()):
            raise PolicyInputError("load history: rates must be finite and at least 0")

    def __len__(self) -> int:
        return len(self.rates_rps)

    def until(self, num_slots: int) -> LoadHistory:
        """The history as it was after its first ``num_slots``."""
        return LoadHistory(rates_rps=self.rates_rps[:num_slots], slot_s=self.slot_s)

    @classmethod
    def of(
        cls,
        slots: Iterable[LoadSlot],
        *,
        mix: tuple[float, float] | None = None,
        slot_s: float = SLOT_S,
    ) -> LoadHistory:
        """In order of time. A slot that nobody saw keeps the rate before it: no data is not
        silence."""
        kept = sorted((s for s in slots if s.seen_s > 0), key=lambda s: s.start_s)
        return cls(rates_rps=np.array(_fill(kept, mix, slot_s)), slot_s=slot_s)


def _fill(slots: Sequence[LoadSlot], mix: tuple[float, float] | None, slot_s: float) -> list[float]:
    rates: list[float] = []
    before_s: float | None = None
    for slot in slots:
        if before_s is not None:
            gap = round((slot.start_s - before_s) / slot_s) - 1
            rates += rates[-1:] * gap
        rates.append(slot.rate_rps(mix))
        before_s = slot.start_s
    return rates
