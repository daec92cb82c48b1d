"""Emulated links: delays collectives so that CPU ranks show the trade-offs of real ones."""

from __future__ import annotations

import time

from torch import Tensor

from engine.parallel.communicator import Communicator, PassingCommunicator
from engine.spec.config import LinkEmulation

# time.sleep may wake up this much too late, so that the last stretch is spun.
SPIN_S = 100e-6


class LinkedCommunicator(PassingCommunicator):
    """Wraps a communicator and adds the declared link's time to each collective, on CPU only.

    Each of n members sends over its link what the usual algorithms send: all-reduce 2(n-1)/n of the
    tensor (ring), all-gather n-1 times its part, all-to-all (n-1)/n of the tensor, send all of it.
    A collective ends for all members when it ends for the slowest, so the delay follows the real
    exchange. A send is delayed before it is handed over.
    """

    def __init__(self, inner: Communicator, link: LinkEmulation) -> None:
        super().__init__(inner)
        self._link = link

    def all_reduce(self, x: Tensor) -> Tensor:
        out = self.inner.all_reduce(x)
        self._wait(2 * x.nbytes * (self.size - 1) // self.size)
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        out = self.inner.all_gather(x)
        self._wait(x.nbytes * (self.size - 1))
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        out = self.inner.all_to_all(x)
        self._wait(x.nbytes * (self.size - 1) // self.size)
        return out

    def send(self, x: Tensor, dst: int) -> None:
        self._wait(x.nbytes)
        self.inner.send(x, dst)

    def barrier(self) -> None:
        self.inner.barrier()
        self._wait(0)

    def _wait(self, num_bytes: int) -> None:
        pause(self._link.delay_s(num_bytes) if self.size > 1 else 0.0)


def pause(seconds: float) -> None:
    """Return after ``seconds``, late by some microseconds at most on an idle core."""
    end = time.perf_counter() + seconds
    if seconds > SPIN_S:
        time.sleep(seconds - SPIN_S)
    while time.perf_counter() < end:
        pass
