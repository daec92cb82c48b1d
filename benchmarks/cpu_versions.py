"""Torch's and the compiled operations of a layer, timed in turn in one process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.kernels.native_build import NO_COMPILER_VARIABLE

VERSIONS = ("torch", "compiled")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
REPEATS = 3
Call = Callable[[], object]


@dataclass(kw_only=True, eq=False)
class Compared:
    """Milliseconds of every round, by version."""

    name: str
    each_ms: dict[str, list[float]]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(*(self.each_ms[v] for v in VERSIONS), strict=True)]

    def row(self) -> str:
        """Medians, and the ratio torch / compiled with its range over rounds."""
        torch_ms, ours_ms = (statistics.median(self.each_ms[v]) for v in VERSIONS)
        ratios = self.ratios
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        return (
            f"| {self.name} | {torch_ms:.3f} | {ours_ms:.3f} "
            f"| **{statistics.median(ratios):.2f}** ({spread}) |"
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compares versions over ``rounds``; ``clock`` is in seconds."""

    rounds: int
    clock: Callable[[], float]

    def compare(self, name: str, calls: dict[str, Call], *, per: int) -> Compared:
        """The versions in turn; a round's time is the quickest of a few calls, over ``per``."""
        found = Compared(name=name, each_ms={version_: [] for version_ in VERSIONS})
        for call in calls.values():
            call()
        for _ in range(self.rounds):
            for version_, call in calls.items():
                quickest_s = min(self._seconds(call) for _ in range(REPEATS))
                found.each_ms[version_].append(quickest_s * 1e3 / per)
        return found

    def _seconds(self, call: Call) -> float:
        started_s = self.clock()
        call()
        return self.clock() - started_s


@contextmanager
def running(version_: str) -> Iterator[None]:
    """Objects made inside compute with torch's or with the compiled operations."""
    os.environ[NO_COMPILER_VARIABLE] = "1" if version_ == "torch" else "0"
    try:
        yield
    finally:
        del os.environ[NO_COMPILER_VARIABLE]
