"""The ordered groups a rank belongs to, and what wraps their communicators.

With sp=3, tp=2 (rank = s*tp + t) one stage looks like this::

            t=0  t=1
    s=0      0    1        tp groups    rows:     [0,1] [2,3] [4,5]
    s=1      2    3        sp groups    columns:  [0,2,4] [1,3,5]
    s=2      4    5        shift group  column by column: [0,2,4,1,3,5]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from engine.kernels.cuda import new_event
from engine.spec.plan import Mode, ParallelPlan, RankCoords, rank_coords, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from engine.parallel.communicator import Communicator

GROUP_NAMES = ("tp", "sp", "shift", "pipeline")
Args = ParamSpec("Args")
Result = TypeVar("Result")


class SoloCommunicator:
    """The group of one: every collective is a no-op."""

    size = 1
    rank = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def all_to_all(self, x: Tensor) -> Tensor:
        return x

    def send(self, x: Tensor, dst: int) -> None:
        raise AssertionError(f"a group of one has no member {dst} to send {tuple(x.shape)} to")

    def recv(self, like: Tensor, src: int) -> Tensor:
        raise AssertionError(f"a group of one has no member {src}; wanted {tuple(like.shape)}")

    def barrier(self) -> None:
        return


@dataclass(frozen=True, kw_only=True)
class TimeReading:
    """Time inside collectives: ``host_s``, and between pairs of events on the device."""

    host_s: float
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]]

    @property
    def seconds(self) -> float:
        """All of it; waits for the device to be done with them."""
        total_s = self.host_s
        for start, end in self.events:
            end.synchronize()
            total_s += start.elapsed_time(end) * 1e-3
        return total_s


class TimedCommunicator:
    """Passes every call on and keeps the time it took until :meth:`take`.

    On CUDA a collective only queues work, so device events stand around it instead.
    """

    def __init__(self, inner: Communicator) -> None:
        self.inner = inner
        self.size = inner.size
        self.rank = inner.rank
        self._host_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> TimeReading:
        """The time since the last call of this; waits for nothing."""
        reading = TimeReading(host_s=self._host_s, events=self._events)
        self._host_s, self._events = 0.0, []
        return reading

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._timed(x.is_cuda, self.inner.all_reduce, x)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._timed(x.is_cuda, self.inner.all_gather, x)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._timed(x.is_cuda, self.inner.all_to_all, x)

    def send(self, x: Tensor, dst: int) -> None:
        self._timed(x.is_cuda, self.inner.send, x, dst)

    def recv(self, like: Tensor, src: int) -> Tensor:
        return self._timed(like.is_cuda, self.inner.recv, like, src)

    def barrier(self) -> None:
        self._timed(False, self.inner.barrier)

    def _timed(
        self, on_device: bool, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        if on_device:
            return self._timed_on_device(call, *args, **kwargs)
        start_s = time.perf_counter()
        result = call(*args, **kwargs)
        self._host_s += time.perf_counter() - start_s
        return result

    def _timed_on_device(
        self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        start, end = new_event(is_timed=True), new_event(is_timed=True)
        start.record()
        result = call(*args, **kwargs)
        end.record()
        self._events.append((start, end))
        return result


@dataclass(frozen=True, kw_only=True)
class GroupMembers:
    """Ranks (inside the replica) of each group one rank belongs to, in group order."""

    tp: tuple[int, ...]
    sp: tuple[int, ...]
    shift: tuple[int, ...]
    pipeline: tuple[int, ...]

    def named(self) -> list[tuple[str, tuple[int, ...]]]:
        """The groups by name, always in the order tp, sp, shift, pipeline."""
        return [(name, getattr(self, name)) for name in GROUP_NAMES]


@dataclass(frozen=True, kw_only=True)
class RankGroups:
    """Communicators of one rank; a group of size 1 is a :class:`SoloCommunicator`.

    ``tp``: same p and s, order t. ``sp``: same p and t, order s. ``shift``: same p, order
    ``t*sp + s`` (the shard index, so gathered vocabulary shards come in order). ``pipeline``:
    same s and t, order p; only send and recv are used.
    """

    tp: Communicator
    sp: Communicator
    shift: Communicator
    pipeline: Communicator

    @property
    def num_stages(self) -> int:
        return self.pipeline.size

    @property
    def stage(self) -> int:
        return self.pipeline.rank

    def tensor(self, mode: Mode) -> Communicator:
        """The group that shares one token's matrix products in ``mode``."""
        return self.tp if mode is Mode.BASE else self.shift


def solo_groups() -> RankGroups:
    """The groups of a world of one rank."""
    solo = SoloCommunicator()
    return RankGroups(tp=solo, sp=solo, shift=solo, pipeline=solo)


def group_members(plan: ParallelPlan, rank: int) -> GroupMembers:
    """The four groups of ``rank`` (0 <= rank < pp*sp*tp) under ``plan``."""
    me = rank_coords(plan, rank)

    def at(*, p: int = me.p, s: int = me.s, t: int = me.t) -> int:
        return rank_of(plan, RankCoords(p=p, s=s, t=t))

    return GroupMembers(
        tp=tuple(at(t=t) for t in range(plan.tp)),
        sp=tuple(at(s=s) for s in range(plan.sp)),
        shift=tuple(at(s=s, t=t) for t in range(plan.tp) for s in range(plan.sp)),
        pipeline=tuple(at(p=p) for p in range(plan.pp)),
    )


def all_groups(plan: ParallelPlan) -> list[tuple[str, tuple[int, ...]]]:
    """Every group of more than one rank of a replica, once each, the same list on every rank."""
    found: dict[tuple[str, tuple[int, ...]], None] = {}
    for rank in range(plan.replica_size):
        for name, members in group_members(plan, rank).named():
            if len(members) > 1:
                found[(name, members)] = None
    return list(found)


def build_groups(
    plan: ParallelPlan, rank: int, make: Callable[[str, Sequence[int]], Communicator]
) -> RankGroups:
    """The communicators of ``rank``.

    ``make(name, members_in_order)`` is called for each of its groups of more than one rank, in
    the order tp, sp, shift, pipeline.
    """
    made = {
        name: make(name, members) if len(members) > 1 else SoloCommunicator()
        for name, members in group_members(plan, rank).named()
    }
    return RankGroups(**made)
