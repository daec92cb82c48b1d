"""What sampling the next tokens costs on a device: passes over the logits, and a sort for the
samplers that need one. An estimate from traffic; nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tuner.work.counts import LogitsExchange

if TYPE_CHECKING:
    from tuner.hardware.device import DeviceSpec

# Bytes moved per logit. All samplers cast 2 bytes to 4 and look for a largest value.
GREEDY_BYTES = 2 + 4 + 4
# Scaling in place, a softmax of two reads and a write, noise, its quotient, its largest.
PLAIN_BYTES = GREEDY_BYTES + 8 + 12 + 4 + 12 + 4
# Cut tails: softmax and cumulative sum of sorted values, two masks, and the way back.
TAIL_BYTES = 12 + 8 + 12 + 16
# A least-significant-digit radix sort of 4-byte keys with 8-byte places makes 4 rounds, each
# reading keys twice and places once and writing both (Onesweep, arXiv 2206.01784, section 2);
# rows are kept apart by a second sort over row numbers, as torch.sort does.
SORT_BYTES = 2 * 4 * (2 * 4 + 8 + 4 + 8)
# There CUB sorts 4-byte keys on A100 at 29.4 / 1.5 billion a second, in 4 rounds of 3 passes.
SORT_SHARE = 29.4e9 / 1.5 * 4 * 3 * 4 / 2.039e12


class SampleKind(StrEnum):
    """``greedy`` takes the largest logit, ``plain`` draws at a temperature, ``full`` sorts first
    (top-k, top-p)."""

    GREEDY = "greedy"
    PLAIN = "plain"
    FULL = "full"

    @property
    def num_kernels(self) -> int:
        """Kernels of a sampler written in plain torch, about."""
        return {SampleKind.GREEDY: 3, SampleKind.PLAIN: 8, SampleKind.FULL: 30}[self]


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """How a step's rows are sampled on the ranks of the last stage.

    ``is_parallel``: every rank samples its share of the rows (Albireo, arXiv 2606.01927,
    section 4); else logits are gathered and all rows sampled in one place.
    """

    kind: SampleKind = SampleKind.PLAIN
    is_parallel: bool = False

    @property
    def exchange(self) -> LogitsExchange:
        """How logits travel between ranks."""
        if not self.is_parallel:
            return LogitsExchange.GATHER
        if self.kind is SampleKind.GREEDY:
            return LogitsExchange.LARGEST
        return LogitsExchange.ROWS

    def rows(self, sampled: int, ranks: int) -> float:
        """Whole rows that one rank samples. Greedy ranks scan their shard of every row, which is as
        many numbers.
        """
        if not self.is_parallel or ranks == 1:
            return float(sampled)
        return sampled / ranks if self.kind is SampleKind.GREEDY else float(-(-sampled // ranks))


def sample_s(device: DeviceSpec, rows: float, vocab_size: int, kind: SampleKind) -> float:
    """Seconds to sample ``rows`` whole rows of ``vocab_size`` logits on one device."""
    if rows <= 0:
        return 0.0
    logits = rows * vocab_size
    passes = GREEDY_BYTES if kind is SampleKind.GREEDY else PLAIN_BYTES
    sort_s = 0.0
    if kind is SampleKind.FULL:
        passes += TAIL_BYTES
        sort_s = logits * SORT_BYTES / (device.memory_bytes_per_s * SORT_SHARE)
    moved_s = logits * passes / device.achievable_bytes_per_s
    return kind.num_kernels * device.kernel_launch_s + moved_s + sort_s
