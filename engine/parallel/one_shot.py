"""Small sums over a group in one kernel, through memory that its members read of each other.

NCCL hands a sum on from member to member. For the few rows of a decode step that takes longer than
their bytes do: here each member writes its part where all can read it (torch's symmetric memory),
waits until the others have, and adds all parts in the order of the group, so that all hold the same
bits. Larger sums, whose bytes count, stay with NCCL.

Off unless :data:`ON_VARIABLE` asks for it: it has not run on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from engine.parallel.communicator import Communicator, PassingCommunicator

ON_VARIABLE = "GEARSHIFT_ONE_SHOT_SUMS"
# Up to here torch itself, within a node, has each member read all parts.
MOST_BYTES = 256 * 2**10
# More members than the kernel keeps in registers.
MOST_MEMBERS = 8
# What the kernel adds, and moves at once.
DTYPES = (torch.bfloat16, torch.float32)
WORD_BYTES = 16
TRIED_NUMBERS = 64

# ``x`` -> its sum over the group, in new memory; the same shape and dtype on every member.
SmallSum = Callable[[Tensor], Tensor]


def is_asked_for(num_members: int) -> bool:
    """Whether groups of this size sum so."""
    is_on = os.environ.get(ON_VARIABLE, "") not in ("", "0")
    return is_on and 1 < num_members <= MOST_MEMBERS


def is_small(x: Tensor) -> bool:
    """Whether ``x`` is summed so. It depends on nothing that could differ between members."""
    is_aligned = not (x.nbytes % WORD_BYTES or x.storage_offset() * x.itemsize % WORD_BYTES)
    return x.dtype in DTYPES and is_aligned and 0 < x.nbytes <= MOST_BYTES


class PeerSum:
    """A :data:`SmallSum` by torch's kernel, over ``MOST_BYTES`` of every member of ``group``.

    Made by all members at once; not while a CUDA graph is captured, but its calls may be. Sums of
    bfloat16 are rounded part by part.

    Raises:
        RuntimeError: the devices cannot read each other's memory, or torch has no such kernel.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self._group_name = group.group_name
        self._memory = symmetric.empty(MOST_BYTES, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self._memory, self._group_name)

    def __call__(self, x: Tensor) -> Tensor:
        mine = self._memory[: x.nbytes].view(x.dtype).view(x.shape)
        summed: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            mine, x, "sum", self._group_name
        )
        return summed


class OneShotCommunicator(PassingCommunicator):
    """``inner``, but for the sums that are small."""

    def __init__(self, *, inner: Communicator, small_sum: SmallSum) -> None:
        super().__init__(inner)
        self.small_sum = small_sum

    def all_reduce(self, x: Tensor) -> Tensor:
        return self.small_sum(x) if is_small(x) else self.inner.all_reduce(x)


def with_one_shot(
    inner: Communicator, open_sum: Callable[[], SmallSum], device: torch.device
) -> tuple[Communicator, str]:
    """``inner`` with small sums by what ``open_sum`` opens, and "", if that works on all members;
    else ``inner`` alone, and why. Called by all members at once.
    """
    opened: list[SmallSum] = []

    def open_it() -> None:
        opened.append(open_sum())

    def try_it() -> None:
        _try(opened[0], inner, device)

    # Whoever tries what a peer could not open would wait for it for ever.
    for attempt in (open_it, try_it):
        reason = _reason(attempt)
        if not _all(inner, not reason, device):
            return inner, reason or "not on another rank"
    return OneShotCommunicator(inner=inner, small_sum=opened[0]), ""


def _reason(attempt: Callable[[], None]) -> str:
    """Why ``attempt`` fails; "" if it does not."""
    try:
        attempt()
    except (RuntimeError, ImportError, AttributeError, TypeError, ValueError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _try(small_sum: SmallSum, inner: Communicator, device: torch.device) -> None:
    """Sum numbers whose sum is known, twice: the second sum must not meet the first one's parts.
    Only then look at them, since all members have to take part in all sums.
    """
    tried = [(dtype, factor) for dtype in DTYPES for factor in (1, 2)]
    sums = [
        small_sum(
            torch.full((TRIED_NUMBERS,), factor * (inner.rank + 1), dtype=dtype, device=device)
        )
        for dtype, factor in tried
    ]
    total = inner.size * (inner.size + 1) / 2
    for (dtype, factor), found in zip(tried, sums, strict=True):
        if found.tolist() != [factor * total] * TRIED_NUMBERS:
            raise RuntimeError(f"the sum of {dtype} is wrong: {found[0].item()}")


def _all(inner: Communicator, is_fine: bool, device: torch.device) -> bool:
    """Whether it is so on every member."""
    told = inner.all_gather(torch.tensor([is_fine], dtype=torch.uint8, device=device))
    return bool(told.min().item())
