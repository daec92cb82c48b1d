"""How the lengths of a process vary: one number, between two, or log-normal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tuner.spec.errors import WorkloadError
from tuner.workload import synthetic
from tuner.workload.bounds import WORD_BOUNDS
from tuner.workload.workload import IntArray

FORMS = (
    "write 1024, uniform:512..1024, uniform:0.8..1*1024 (shares of 1,024) or lognormal:1024~0.5 "
    "(mean and CV)"
)
_UNIFORM = re.compile(r"uniform:([^.*~]+(?:\.\d+)?)\.\.([^*~]+)(?:\*(.+))?")
_LOGNORMAL = re.compile(r"lognormal:([^~]+)~(.+)")


class LengthLaw(Protocol):
    """Where lengths come from, in tokens. ``draw`` gives ``count`` of at least 1; all chance is
    the generator's."""

    @property
    def mean(self) -> float: ...

    def draw(self, rng: np.random.Generator, count: int) -> IntArray: ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every length from ``low`` to ``high``, both among them, is as likely as any other."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def draw(self, rng: np.random.Generator, count: int) -> IntArray:
        return rng.integers(self.low, self.high, size=count, endpoint=True, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """Log-normal around ``mean``; ``cv`` 0: all are equal to it."""

    mean: float
    cv: float

    def draw(self, rng: np.random.Generator, count: int) -> IntArray:
        return synthetic.lengths(rng, mean=self.mean, cv=self.cv, count=count)


def parse_law(spec: str, word: str, raw: str) -> LengthLaw:
    """The law in ``raw``, the value of ``word`` (``input`` or ``output``) of ``spec``.

    Raises:
        WorkloadError: no law, or a number outside its range.
    """

    def number(bound: str, text: str) -> float:
        return WORD_BOUNDS[bound].check(spec, word, text.strip())

    if (found := _LOGNORMAL.fullmatch(raw)) is not None:
        return Lognormal(mean=number(word, found[1]), cv=number(f"{word}_cv", found[2]))
    if (found := _UNIFORM.fullmatch(raw)) is None:
        raise WorkloadError(f"workload {spec!r}: {word}={raw} is no length; {FORMS}")
    nominal = 1.0 if found[3] is None else number(word, found[3])
    # As published load tools round: down.
    low, high = (int(number(word, found[i]) * nominal) for i in (1, 2))
    if not 1 <= low <= high <= WORD_BOUNDS[word].high:
        raise WorkloadError(
            f"workload {spec!r}: {word}={raw} is from {low} to {high} tokens; the first must be at "
            f"least 1 and not above the second; {FORMS}"
        )
    return Uniform(low=low, high=high)
