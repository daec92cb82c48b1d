"""Small sums in one kernel: all members of a group take them, or none does, and then it is said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.parallel.one_shot import (
    MOST_BYTES,
    ON_VARIABLE,
    PeerSum,
    SmallSum,
    is_asked_for,
    is_small,
    with_one_shot,
)
from tests.engine.thread_ranks import ThreadCommunicator, ThreadGroup

CPU = torch.device("cpu")
SIZE = 3
Result = TypeVar("Result")


def on_every_member(work: Callable[[int, Communicator, SmallSum], Result]) -> list[Result]:
    """``work(rank, group, sum)`` in a thread each; the sum's memory is a group of its own."""
    group, memory = (ThreadGroup(SIZE, timeout_s=10.0) for _ in range(2))

    def run(rank: int) -> Result:
        small_sum = ThreadCommunicator(memory, rank).all_reduce
        return work(rank, ThreadCommunicator(group, rank), small_sum)

    with ThreadPoolExecutor(SIZE) as threads:
        return list(threads.map(run, range(SIZE)))


def test_small_sums_go_one_way_and_large_ones_the_other() -> None:
    def run(rank: int, group: Communicator, small_sum: SmallSum) -> tuple[list[int], Tensor]:
        taken: list[int] = []

        def noted(x: Tensor) -> Tensor:
            taken.append(x.nbytes)
            return small_sum(x)

        found, reason = with_one_shot(group, lambda: noted, CPU)
        assert (reason, found.size, found.rank) == ("", SIZE, rank)
        tried = len(taken)
        sums = [found.all_reduce(torch.full((n,), float(rank))) for n in (8, MOST_BYTES)]
        assert [x[0].item() for x in sums] == [0.0 + 1 + 2] * 2
        found.barrier()
        return taken[tried:], found.all_gather(torch.tensor([rank]))

    for taken, gathered in on_every_member(run):
        assert taken == [8 * 4]
        assert gathered.flatten().tolist() == [0, 1, 2]


def test_one_member_that_cannot_open_its_memory_keeps_all_from_it() -> None:
    def run(rank: int, group: Communicator, small_sum: SmallSum) -> tuple[bool, str]:
        def open_sum() -> SmallSum:
            if rank == 1:
                raise RuntimeError("no peer access\nand a long trace")
            return small_sum

        found, reason = with_one_shot(group, open_sum, CPU)
        return found is group, reason

    assert on_every_member(run) == [
        (True, "not on another rank"),
        (True, "no peer access"),
        (True, "not on another rank"),
    ]


def test_a_member_that_sums_wrongly_keeps_all_from_it() -> None:
    def run(rank: int, group: Communicator, small_sum: SmallSum) -> tuple[bool, str]:
        off = 1.0 if rank == 2 else 0.0
        found, reason = with_one_shot(group, lambda: lambda x: small_sum(x) + off, CPU)
        return found is group, reason

    assert on_every_member(run)[2] == (True, "the sum of torch.bfloat16 is wrong: 7.0")


@pytest.mark.parametrize(
    ("x", "is_taken"),
    [
        (torch.zeros(8, dtype=torch.bfloat16), True),
        (torch.zeros(1, 4096), True),
        (torch.zeros(MOST_BYTES // 4), True),
        (torch.zeros(MOST_BYTES // 4 + 4), False),
        (torch.zeros(0), False),
        (torch.zeros(8, dtype=torch.float16), False),
        (torch.zeros(8, dtype=torch.float64), False),
        (torch.zeros(7, dtype=torch.bfloat16), False),
        (torch.zeros(9)[1:], False),
    ],
)
def test_what_is_small_depends_on_shape_and_dtype(x: Tensor, is_taken: bool) -> None:
    assert is_small(x) == is_taken


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ON_VARIABLE, raising=False)
    assert not is_asked_for(2)
    monkeypatch.setenv(ON_VARIABLE, "0")
    assert not is_asked_for(2)
    monkeypatch.setenv(ON_VARIABLE, "1")
    assert [size for size in range(1, 12) if is_asked_for(size)] == [2, 3, 4, 5, 6, 7, 8]


def test_without_a_device_torch_has_no_such_memory_and_says_so() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        assert group is not None
        inner = ThreadCommunicator(ThreadGroup(1, timeout_s=1.0), 0)
        found, reason = with_one_shot(inner, lambda: PeerSum(group, CPU), CPU)
    finally:
        dist.destroy_process_group()
    assert found is inner
    assert reason


def test_torch_knows_the_kernel_that_is_called() -> None:
    x = torch.empty(2, 8, dtype=torch.bfloat16, device="meta")
    kernel = torch.ops.symm_mem.one_shot_all_reduce_copy
    assert [argument.name for argument in kernel.default._schema.arguments] == [
        *("symm_buffer", "local_input", "reduce_op", "group_name"),
    ]
    found = kernel(x, x, "sum", "any")
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
