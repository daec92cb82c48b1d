"""Every way ranks exchange tensors passes the same suite, in real processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.parallel.communicator import Communicator
from engine.parallel.one_shot import OneShotCommunicator
from engine.parallel.shm_build import find_library
from engine.parallel.staged import StagedCommunicator
from engine.spec.errors import RankError
from tests.contracts.communicator import CommunicatorContract, World
from tests.contracts.communicator_worker import Operation, run_operation, to_bytes
from tests.engine.rank_pools import ProcessWorld, RankPools, process_world
from tests.engine.thread_ranks import ThreadCommunicator, ThreadGroup

GROUPS = ((0, 1), (1, 0), (2, 3), (0, 2), (1, 3), (3, 1), (0, 2, 1, 3), (0, 1, 2, 3))
SUM = Operation(kind="all_reduce", shape=(8,))


class TestCompiledSharedMemory(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, rank_pools: RankPools) -> Iterator[World]:
        library = find_library()
        if library is None:
            pytest.skip("no C++ compiler here")
        with process_world(rank_pools, "shm", num_ranks=4, groups=GROUPS, library=library) as world:
            yield world


class TestPythonSharedMemory(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, rank_pools: RankPools) -> Iterator[World]:
        with process_world(rank_pools, "shm", num_ranks=4, groups=GROUPS) as world:
            yield world


class TestGloo(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, rank_pools: RankPools) -> Iterator[World]:
        with process_world(rank_pools, "gloo", num_ranks=4, groups=GROUPS) as world:
            yield world


class ThreadsWorld:
    """Four threads of this process, as the plans' tests use them."""

    size = 4

    def communicator(self, group: ThreadGroup, position: int) -> Communicator:
        return ThreadCommunicator(group, position)

    def run(self, members: Sequence[int], program: Sequence[Operation]) -> list[list[bytes]]:
        group = ThreadGroup(len(members), timeout_s=30.0)

        def run_member(position: int) -> list[bytes]:
            mine = self.communicator(group, position)
            rank = members[position]
            return [to_bytes(run_operation(mine, operation, rank)) for operation in program]

        with ThreadPoolExecutor(len(members)) as threads:
            return list(threads.map(run_member, range(len(members))))


class StagedWorld(ThreadsWorld):
    """The same threads, through the copies that ranks on devices need."""

    def communicator(self, group: ThreadGroup, position: int) -> Communicator:
        return StagedCommunicator(super().communicator(group, position))


class OneShotWorld(ThreadsWorld):
    """The same threads, whose small sums go another way."""

    def communicator(self, group: ThreadGroup, position: int) -> Communicator:
        memory = vars(group).setdefault("memory", ThreadGroup(group.size, group.timeout_s))
        small_sum = ThreadCommunicator(memory, position).all_reduce
        return OneShotCommunicator(inner=super().communicator(group, position), small_sum=small_sum)


class TestOneShot(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> World:
        return OneShotWorld()


class TestStaged(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> World:
        return StagedWorld()


class TestThreads(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> World:
        return ThreadsWorld()


@pytest.fixture(params=["compiled", "python", "gloo"])
def small_world(request: pytest.FixtureRequest, rank_pools: RankPools) -> Iterator[ProcessWorld]:
    """Two ranks that wait for each other no longer than half a second, or three where they meet
    first."""
    library = find_library() if request.param == "compiled" else None
    if request.param == "compiled" and library is None:
        pytest.skip("no C++ compiler here")
    backend = "gloo" if request.param == "gloo" else "shm"
    timeout_s = 3.0 if backend == "gloo" else 0.5
    with process_world(
        rank_pools, backend, num_ranks=2, groups=[(0, 1)], library=library, timeout_s=timeout_s
    ) as world:
        yield world


def test_a_peer_that_does_not_come_is_a_rank_error(small_world: ProcessWorld) -> None:
    (outcome,) = small_world.outcomes((0, 1), [SUM], only=[0])
    assert outcome.error is not None
    assert "g0" in outcome.error


@pytest.mark.parametrize(
    "small_world",
    ["compiled", pytest.param("python", marks=pytest.mark.slow), "gloo"],
    indirect=True,
)
def test_a_peer_that_is_gone_is_a_rank_error(small_world: ProcessWorld) -> None:
    small_world.lose(1)
    with pytest.raises(RankError, match=r"rank 1 .* exited with code 7"):
        small_world.outcomes((0, 1), [SUM], only=[1])
    (outcome,) = small_world.outcomes((0, 1), [SUM], only=[0])
    assert outcome.error is not None
