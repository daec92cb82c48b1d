"""Ranks as threads of one process: a whole replica without processes, for tests of any plan.

``ThreadGroup`` is a full implementation of the communicator contract: sums in group order, equal
bits on every member, typed failures when a peer is gone.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.parallel.mesh import RankGroups, build_groups
from engine.rank.runner import ModelRunner, PreparedStep
from engine.spec.errors import RankError
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from engine.spec.share import RankShare
from engine.spec.steps import StepPlan, StepResult


class ThreadGroup:
    """The shared half of one ordered group of threads."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.slots: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout_s)
        self.mail: dict[tuple[int, int], queue.Queue[Tensor]] = {
            (src, dst): queue.Queue() for src in range(size) for dst in range(size)
        }


class ThreadCommunicator:
    """One member's end of a :class:`ThreadGroup`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group = group
        self.size = group.size
        self.rank = rank

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._exchanged(x, _ordered_sum)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._exchanged(x, torch.stack)

    def all_to_all(self, x: Tensor) -> Tensor:
        assert x.shape[0] == self.size, f"{tuple(x.shape)} has no block for each of {self.size}"
        return self._exchanged(x, lambda parts: torch.stack([part[self.rank] for part in parts]))

    def send(self, x: Tensor, dst: int) -> None:
        self._group.mail[(self.rank, dst)].put(x.clone())

    def recv(self, like: Tensor, src: int) -> Tensor:
        try:
            found = self._group.mail[(src, self.rank)].get(timeout=self._group.timeout_s)
        except queue.Empty as error:
            raise RankError(f"nothing came from member {src}") from error
        assert found.shape == like.shape, f"got {found.shape}, wanted {like.shape}"
        assert found.dtype == like.dtype, f"got {found.dtype}, wanted {like.dtype}"
        return found

    def barrier(self) -> None:
        try:
            self._group.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RankError("a member of the group is gone or late") from error

    def _exchanged(self, x: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        assert x.is_contiguous(), f"{tuple(x.shape)} with strides {x.stride()} is not contiguous"
        self._group.slots[self.rank] = x
        self.barrier()
        parts = [slot for slot in self._group.slots if slot is not None]
        shapes = {(part.shape, part.dtype) for part in parts}
        assert len(shapes) == 1, f"members brought different tensors: {shapes}"
        result = combine(parts)
        self.barrier()
        return result


def _ordered_sum(parts: list[Tensor]) -> Tensor:
    """The sum in group order, in float32 where the dtype is narrower."""
    is_narrow = parts[0].dtype in (torch.float16, torch.bfloat16)
    total = parts[0].to(torch.float32 if is_narrow else parts[0].dtype, copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts[0].dtype)


class ThreadWorld:
    """The groups of every rank of a replica, each for its own thread."""

    def __init__(self, plan: ParallelPlan, *, timeout_s: float = 20.0) -> None:
        self.plan = plan
        self._timeout_s = timeout_s
        self._groups: dict[tuple[str, tuple[int, ...]], ThreadGroup] = {}

    def groups(self, rank: int) -> RankGroups:
        def make(name: str, members: Sequence[int]) -> Communicator:
            key = (name, tuple(members))
            if key not in self._groups:
                self._groups[key] = ThreadGroup(len(members), self._timeout_s)
            return ThreadCommunicator(self._groups[key], list(members).index(rank))

        return build_groups(self.plan, rank, make)


class ThreadRank:
    """A rank with the two threads of a rank's process: one prepares steps, one executes them."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._preparing, self.computing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def submit(self, step: StepPlan) -> Future[StepResult | None]:
        prepared = self._preparing.submit(self.runner.prepare, step)
        return self.computing.submit(self._execute, prepared)

    def close(self) -> None:
        for threads in (self._preparing, self.computing):
            threads.shutdown(cancel_futures=True)

    def _execute(self, prepared: Future[PreparedStep]) -> StepResult | None:
        answer = self.runner.execute(prepared.result())
        return None if answer is None else answer.wait()


class ThreadReplica:
    """A replica whose ranks are threads; ``execute`` runs one step on all of them."""

    def __init__(
        self,
        *,
        model_dir: Path,
        plan: ParallelPlan,
        dtype: DType = DType.FLOAT64,
        block_size: int = 4,
        num_kv_blocks: int = 64,
        num_slots: int = 8,
        has_parallel_sampling: bool = True,
        device: str = "cpu",
        max_graph_tokens: int = 0,
        quantisation: WeightFormat | None = None,
    ) -> None:
        self.plan = plan
        world = ThreadWorld(plan)
        self.ranks = [
            ThreadRank(
                ModelRunner(
                    RankShare(
                        model_dir=str(model_dir),
                        plan=plan,
                        rank=rank,
                        dtype=dtype,
                        device=device,
                        block_size=block_size,
                        num_kv_blocks=num_kv_blocks,
                        num_slots=num_slots,
                        max_blocks_per_seq=num_kv_blocks,
                        has_parallel_sampling=has_parallel_sampling,
                        max_graph_tokens=max_graph_tokens,
                        quantisation=quantisation,
                    ),
                    groups=world.groups(rank),
                )
            )
            for rank in range(plan.replica_size)
        ]
        self._in_flight: deque[list[Future[StepResult | None]]] = deque()

    @property
    def runners(self) -> list[ModelRunner]:
        return [rank.runner for rank in self.ranks]

    def submit(self, step: StepPlan) -> None:
        """Hand ``step`` to all ranks, behind those in flight."""
        self._in_flight.append([rank.submit(step) for rank in self.ranks])

    def collect(self) -> StepResult:
        """The result of the oldest step in flight."""
        results = [future.result() for future in self._in_flight.popleft()]
        answers = [result for result in results if result is not None]
        assert len(answers) == 1, f"{len(answers)} ranks answered"
        first_of_last_stage = self.plan.replica_size - self.plan.stage_size
        assert results[first_of_last_stage] is answers[0]
        return answers[0]

    def execute(self, step: StepPlan) -> StepResult:
        self.submit(step)
        return self.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.close()
