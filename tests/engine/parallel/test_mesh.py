"""Groups are what the paper's figure shows, ordered, and the same from every rank's side."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.parallel.communicator import Communicator
from engine.parallel.mesh import (
    SoloCommunicator,
    TimedCommunicator,
    all_groups,
    build_groups,
    group_members,
    solo_groups,
)
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.plan import ParallelPlan, rank_coords

ladders = st.builds(
    lambda pp, sp, tp: ParallelPlan(pp=pp, sp=sp, tp=tp, shift=sp > 1),
    pp=st.integers(1, 3),
    sp=st.integers(1, 8),
    tp=st.integers(1, 4),
)


def test_the_groups_of_sp_3_tp_2_are_those_of_the_paper() -> None:
    plan = ParallelPlan(sp=3, tp=2)
    members = [group_members(plan, rank) for rank in range(6)]
    assert {m.tensor(BASE) for m in members} == {(0, 1), (2, 3), (4, 5)}
    assert {m.sequence(BASE) for m in members} == {(0, 2, 4), (1, 3, 5)}
    assert {m.shift for m in members} == {(0, 2, 4, 1, 3, 5)}
    assert {m.pipeline for m in members} == {(rank,) for rank in range(6)}


def test_the_groups_of_the_rungs_of_sp_4_tp_2() -> None:
    plan = ParallelPlan(sp=4, tp=2, shift=True)
    assert [str(plan.rung(mode)) for mode in plan.modes] == ["4x2", "2x4", "1x8"]
    members = [group_members(plan, rank) for rank in range(8)]
    # Block order is 0 2 4 6 | 1 3 5 7: rank s*2 + t holds block t*4 + s.
    middle = Mode("2x4")
    assert {m.tensor(middle) for m in members} == {(0, 4, 1, 5), (2, 6, 3, 7)}
    assert {m.sequence(middle) for m in members} == {(0, 2), (4, 6), (1, 3), (5, 7)}
    assert {m.tensor(SHIFT) for m in members} == {m.shift for m in members}
    assert {m.sequence(SHIFT) for m in members} == {(rank,) for rank in range(8)}


@given(plan=ladders)
def test_every_rank_stands_in_its_groups_at_its_coordinate(plan: ParallelPlan) -> None:
    for rank in range(plan.replica_size):
        coords, members = rank_coords(plan, rank), group_members(plan, rank)
        block = coords.shift_index(plan)
        assert members.tensor(BASE).index(rank) == coords.t
        assert members.sequence(BASE).index(rank) == coords.s
        for mode in plan.modes:
            rung = plan.rung(mode)
            tensor, sequence = members.tensor(mode), members.sequence(mode)
            assert (len(tensor), len(sequence)) == (rung.tp, rung.sp)
            assert (tensor.index(rank), sequence.index(rank)) == divmod(block, rung.sp)
            assert set(tensor) & set(sequence) == {rank}
        assert members.shift.index(rank) == block
        assert members.pipeline.index(rank) == coords.p


@given(plan=ladders)
def test_all_groups_lists_each_group_of_every_rank_once(plan: ParallelPlan) -> None:
    listed = [members for _, members in all_groups(plan)]
    assert len(set(listed)) == len(listed)
    wanted = {
        members
        for rank in range(plan.replica_size)
        for _, members in group_members(plan, rank).named()
        if len(members) > 1
    }
    assert set(listed) == wanted


def test_groups_are_made_in_a_fixed_order_and_only_where_they_have_peers() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def make(name: str, members: Sequence[int]) -> Communicator:
        asked.append((name, tuple(members)))
        return SoloCommunicator()

    build_groups(ParallelPlan(pp=2, sp=2), 3, make)
    # With tp=1 the slices are the whole stage in its order: one group does for both.
    assert asked == [("pipeline", (1, 3)), ("base-sequence", (2, 3))]


def test_a_group_of_one_changes_nothing_and_has_nobody_to_send_to() -> None:
    solo = solo_groups().shift
    x = torch.arange(3.0)
    assert solo.all_reduce(x) is x
    assert torch.equal(solo.all_gather(x), x[None])
    assert torch.equal(solo.all_to_all(x[None]), x[None])
    solo.barrier()
    with pytest.raises(AssertionError):
        solo.send(x, 1)
    with pytest.raises(AssertionError):
        solo.recv(x, 1)


def test_a_timed_group_passes_calls_on_and_hands_their_seconds_out_once() -> None:
    timed = TimedCommunicator(SoloCommunicator())
    x = torch.arange(3.0)
    assert timed.take().seconds == 0
    assert timed.all_reduce(x) is x
    timed.barrier()
    assert timed.take().seconds > 0
    assert timed.take().seconds == 0
    assert (timed.size, timed.rank) == (1, 0)
