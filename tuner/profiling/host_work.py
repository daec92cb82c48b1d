"""CPU time that serving takes beside the ranks' steps: the engine's process, and messages on ranks.

Where every core has a rank at work, this time is taken from one of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class HostWork:
    """CPU seconds over a stretch of serving on one rank: ``num_steps`` steps of ``num_rows``
    sequences in all. ``host_s`` are the engine's own, ``rank_s`` those of the rank's threads that
    receive and decode messages while another one computes.
    """

    num_steps: int
    num_rows: int
    host_s: float
    rank_s: float


class HostWorkMeter:
    """Reads CPU clocks, which other programs do not move, from :meth:`begin` to :meth:`end`."""

    def __init__(self) -> None:
        self._pids = _rank_pids()
        self._host_s = self._rank_s = 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._host_s, self._rank_s = time.process_time(), self._read_ranks()

    def end(self, *, num_steps: int, num_rows: int) -> HostWork:
        """What was used since :meth:`begin`, over that many steps and rows."""
        return HostWork(
            num_steps=num_steps,
            num_rows=num_rows,
            host_s=time.process_time() - self._host_s,
            rank_s=self._read_ranks() - self._rank_s,
        )

    def _read_ranks(self) -> float:
        return sum(other_threads_s(pid) for pid in self._pids)


def _rank_pids() -> list[int]:
    """Rank processes that this one has started."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "engine.rank.worker" in child.cmdline()]


def other_threads_s(pid: int) -> float:
    """CPU seconds of all threads but the main one; 0 where the kernel does not tell."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        try:
            if int(task.name) != pid:
                total_ns += int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return total_ns * 1e-9
