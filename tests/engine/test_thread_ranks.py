"""The threaded ranks of the other tests keep the communicator contract themselves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contracts.communicator import CommunicatorContract, World
from tests.contracts.communicator_worker import Operation, run_operation, to_bytes
from tests.engine.thread_ranks import ThreadCommunicator, ThreadGroup


class _Threads:
    """Groups of threads in any order of four ranks."""

    size = 4

    def run(self, members: Sequence[int], program: Sequence[Operation]) -> list[list[bytes]]:
        group = ThreadGroup(len(members), timeout_s=20.0)

        def member(position: int) -> list[bytes]:
            communicator = ThreadCommunicator(group, position)
            rank = members[position]
            return [to_bytes(run_operation(communicator, step, rank)) for step in program]

        with ThreadPoolExecutor(len(members)) as threads:
            return list(threads.map(member, range(len(members))))


class TestThreads(CommunicatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> World:
        return _Threads()
