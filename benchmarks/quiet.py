"""How much of the machine other programs used while something was measured."""

from __future__ import annotations

import time

import psutil


class OtherPrograms:
    """Measures, over a ``with`` block, the share of all cores that other programs used.

    ``share`` is 0 where this process and its children were alone.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._busy_s = self._own_s = self._started_s = 0.0

    def __enter__(self) -> OtherPrograms:
        self._busy_s, self._own_s, self._started_s = _busy_s(), own_cpu_s(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        others_s = (_busy_s() - self._busy_s) - (own_cpu_s() - self._own_s)
        wall_s = time.monotonic() - self._started_s
        self.share = max(0.0, others_s) / (wall_s * (psutil.cpu_count() or 1))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def own_cpu_s() -> float:
    """CPU seconds of this process and all its children, ended ones included."""
    me = psutil.Process()
    total = sum(me.cpu_times()[:4])
    for child in me.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return float(total)
