"""Times of work on a device, and the two ceilings that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.kernels.cuda import new_event

Call = Callable[[], object]
REPLAYS = 8
COPY_BYTES = 2 * 2**30
MATRIX = 4096


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this device does at most: bytes read and written by a large copy, and bf16 products."""

    bytes_per_s: float
    flops_per_s: float

    def floor_us(self, *, num_bytes: float = 0.0, flops: float = 0.0) -> float:
        """The least time of work that moves and computes this much."""
        return 1e6 * max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def measure_ceilings() -> Ceilings:
    """Both ceilings of the current device, on random numbers."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    copy_us = time_us([lambda: target.copy_(source)])
    square = source[: MATRIX * MATRIX].view(MATRIX, MATRIX)
    product_us = time_us([lambda: square @ square])
    return Ceilings(
        bytes_per_s=2e6 * source.nbytes / copy_us, flops_per_s=2e6 * MATRIX**3 / product_us
    )


def time_us(calls: Sequence[Call]) -> float:
    """Median time of one of ``calls``, run one after the other in a CUDA graph.

    Several calls on different inputs keep the caches from holding what the next one reads.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for replay in range(REPLAYS + 2):
        begin, end = (new_event(is_timed=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if replay >= 2:
            times.append(begin.elapsed_time(end))
    return 1e3 * sorted(times)[len(times) // 2] / len(calls)
