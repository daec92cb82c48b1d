"""The conformance suite of ``engine.parallel.communicator.Communicator``.

A backend's test module subclasses :class:`CommunicatorContract` and says which ``world`` to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contracts.communicator_worker import DTYPES, Operation, expected, to_bytes

SUMMED = ("float64", "float32", "bfloat16", "float16")
SLOT_BYTES = 256 * 1024
RING_BYTES = 4 * 2**20

shapes = st.one_of(
    st.just((0,)),
    st.tuples(st.integers(1, 70)),
    st.tuples(st.integers(1, 9), st.integers(1, 33)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)
seeds = st.integers(0, 10_000)
sums = st.builds(
    Operation,
    kind=st.just("all_reduce"),
    dtype=st.sampled_from(SUMMED),
    shape=shapes,
    seed=seeds,
)
moves = st.builds(
    Operation,
    kind=st.sampled_from(["all_gather", "all_to_all", "relay", "queue"]),
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=shapes.filter(lambda shape: 0 not in shape),
    seed=seeds,
)
barriers = st.just(Operation(kind="barrier"))
programs = st.lists(st.one_of(sums, moves, barriers), min_size=1, max_size=8)


class World(Protocol):
    """Ranks that can run programs of collectives in ordered groups."""

    size: int

    def run(self, members: Sequence[int], program: Sequence[Operation]) -> list[list[bytes]]:
        """Each member's result bytes of each operation, in group order.

        Raises:
            RankError: what a member raised.
        """
        ...


def check(world: World, members: Sequence[int], program: Sequence[Operation]) -> None:
    """Every member got, to the bit, what it must get."""
    got = world.run(members, program)
    for index, operation in enumerate(program):
        for position, want in enumerate(expected(operation, members)):
            assert got[position][index] == to_bytes(want), (operation, members, position)


class CommunicatorContract:
    """Subclasses provide the fixture ``world`` (four ranks, groups in any order)."""

    orders: tuple[tuple[int, ...], ...] = ((0, 1), (0, 2, 1, 3), (3, 1), (0, 1, 2, 3))

    @pytest.mark.parametrize("dtype", SUMMED)
    @pytest.mark.parametrize("members", orders)
    def test_members_hold_the_same_sum_in_group_order(
        self, world: World, members: tuple[int, ...], dtype: str
    ) -> None:
        check(world, members, [Operation(kind="all_reduce", dtype=dtype, shape=(37, 3))])

    @pytest.mark.parametrize("kind", ["all_gather", "all_to_all", "relay", "queue"])
    @pytest.mark.parametrize("members", orders)
    def test_every_dtype_is_moved_in_group_order(
        self, world: World, members: tuple[int, ...], kind: str
    ) -> None:
        program = [Operation(kind=kind, dtype=dtype, shape=(5, 7)) for dtype in DTYPES]
        check(world, members, program)

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )
    @given(program=programs)
    def test_any_sequence_of_collectives_is_right(
        self, world: World, program: list[Operation]
    ) -> None:
        check(world, (0, 2, 1, 3), program)

    @pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "all_to_all"])
    @pytest.mark.parametrize("excess", [-1, 0, 1])
    def test_tensors_around_and_beyond_the_slot_size_arrive_whole(
        self, world: World, kind: str, excess: int
    ) -> None:
        counts = [times * SLOT_BYTES // 4 + excess for times in (1, 3)]
        program = [
            Operation(kind=kind, dtype="float32", shape=(count,), seed=count) for count in counts
        ]
        check(world, (0, 2, 1, 3), [*program, Operation(kind="all_reduce", shape=(3,))])

    def test_messages_larger_than_the_ring_pass_through_it(self, world: World) -> None:
        count = RING_BYTES + 12_345
        program = [
            Operation(kind="relay", dtype="uint8", shape=(count,)),
            Operation(kind="relay", dtype="float64", shape=(3,)),
        ]
        check(world, (1, 0), program)

    @pytest.mark.parametrize("members", orders)
    def test_a_sender_does_not_wait_for_those_who_have_not_read_its_messages(
        self, world: World, members: tuple[int, ...]
    ) -> None:
        program = [Operation(kind="backlog", dtype="int64", shape=(n,)) for n in (1, 256, 4096)]
        check(world, members, program)

    def test_groups_that_share_ranks_do_not_disturb_each_other(self, world: World) -> None:
        step = [Operation(kind="all_reduce", shape=(11,), seed=seed) for seed in range(5)]
        for members in ((0, 1), (2, 3), (0, 2, 1, 3), (1, 3), (0, 2), (0, 1)):
            check(world, members, step)
