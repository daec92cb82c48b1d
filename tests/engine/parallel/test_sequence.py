"""The exchanges of sequence parallelism, over threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.parallel.communicator import Communicator
from engine.parallel.mesh import RankGroups
from engine.parallel.pipeline import recv_stage, send_stage
from engine.parallel.sequence import row_exchange
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from tests.engine.thread_ranks import ThreadCommunicator, ThreadGroup, ThreadWorld

LADDER = ParallelPlan(pp=2, sp=4, tp=2, shift=True)
CPU = torch.device("cpu")
Answer = TypeVar("Answer")


def on_threads(size: int, call: Callable[[Communicator], Answer]) -> list[Answer]:
    group = ThreadGroup(size, timeout_s=10.0)
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: call(ThreadCommunicator(group, rank)), range(size)))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.integers(2, 4), rows_per_rank=st.integers(1, 4))
def test_wanted_rows_reach_every_rank_in_the_order_asked_for(
    data: st.DataObject, size: int, rows_per_rank: int
) -> None:
    num_rows = size * rows_per_rank
    wanted = np.array(
        data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, unique=True)), dtype=np.int64
    )
    x = torch.arange(num_rows * 3, dtype=torch.float64).view(num_rows, 3)

    def collect(group: Communicator) -> torch.Tensor:
        exchange = row_exchange(wanted, rows_per_rank=rows_per_rank, group=group, device=CPU)
        mine = x[group.rank * rows_per_rank : (group.rank + 1) * rows_per_rank]
        return exchange.run(mine[exchange.mine])

    for got in on_threads(size, collect):
        assert torch.equal(got, x[torch.from_numpy(wanted)])


@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
@pytest.mark.parametrize("mode", LADDER.modes)
def test_a_stage_receives_the_rows_the_one_before_it_sent(mode: Mode, num_rows: int) -> None:
    world = ThreadWorld(LADDER)
    groups = [world.groups(rank) for rank in range(16)]

    def rows_of(rank: int) -> torch.Tensor:
        """The ranks of a tensor group hold the same rows, every slice its own."""
        own = groups[rank].sequence(mode).rank
        return torch.full((num_rows, 5), float(own)).add_(torch.arange(num_rows)[:, None])

    def run(rank: int) -> torch.Tensor | None:
        mine: RankGroups = groups[rank]
        if mine.stage == 0:
            send_stage(rows_of(rank), mode, mine)
            return None
        return recv_stage(
            num_rows=num_rows,
            hidden_size=5,
            mode=mode,
            groups=mine,
            dtype=torch.float32,
            device=CPU,
        )

    with ThreadPoolExecutor(16) as threads:
        got = list(threads.map(run, range(16)))
    for rank in range(8, 16):
        received = got[rank]
        assert received is not None
        assert torch.equal(received, rows_of(rank))
