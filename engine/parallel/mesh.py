"""The ordered groups a rank belongs to, and what wraps their communicators.

With sp=3, tp=2 (rank = s*tp + t) one stage looks like this::

            t=0  t=1
    s=0      0    1        base: tensor groups    rows:     [0,1] [2,3] [4,5]
    s=1      2    3              sequence groups  columns:  [0,2,4] [1,3,5]
    s=2      4    5        shift: tensor group    column by column: [0,2,4,1,3,5]

The last is the order of blocks: place ``j = t*sp + s`` in it belongs to the rank at (s, t), which
computes head block j in every mode. On a rung (sp', tp') its tensor group are the places of equal
``j % sp'`` and its sequence group those of equal ``j // sp'``, both in this order; base and shift
are the rungs with sp' = sp and sp' = 1 (docs/ladder.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeAlias, TypeVar

import torch

from engine.kernels.cuda import new_event
from engine.parallel.communicator import Communicator, PassingCommunicator
from engine.spec.modes import ENDS, Mode
from engine.spec.plan import ParallelPlan, RankCoords, rank_coords, rank_of

if TYPE_CHECKING:
    from torch import Tensor

GroupT = TypeVar("GroupT")
OtherT = TypeVar("OtherT")
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


class TimedCommunicator(PassingCommunicator):
    """Passes every call on and keeps the time it took until :meth:`take`.

    On CUDA a collective only queues work, so device events stand around it instead; not while
    ``is_paused``, as when work is captured in a graph, which cannot be timed inside.
    """

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self.is_paused = False
        self._host_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> TimeReading:
        """The time since the last call of this; waits for nothing."""
        reading = TimeReading(host_s=self._host_s, events=self._events)
        self._host_s, self._events = 0.0, []
        return reading

    def add(self, seconds: float) -> None:
        """Time in collectives that compiled code called itself."""
        self._host_s += seconds

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
        if self.is_paused:
            return call(*args, **kwargs)
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
class RungGroups(Generic[GroupT]):
    """The two groups of a rank in one mode. ``tensor`` shares the products of a slice of tokens;
    ``sequence`` holds one slice each, and exchanges heads around attention.
    """

    tensor: GroupT
    sequence: GroupT


@dataclass(frozen=True, kw_only=True)
class Groups(Generic[GroupT]):
    """All groups of one rank.

    ``rungs``: those of each mode of the plan. ``shift``: the whole stage in the order of blocks (so
    that gathered vocabulary shards come in order), with Shift on or off. ``pipeline``: same s and
    t, order p; only send and recv are used.
    """

    rungs: Mapping[Mode, RungGroups[GroupT]]
    shift: GroupT
    pipeline: GroupT

    def tensor(self, mode: Mode) -> GroupT:
        """The group that shares one token's matrix products in ``mode``."""
        return self.rungs[mode].tensor

    def sequence(self, mode: Mode) -> GroupT:
        """The group over which the tokens of a step are cut in ``mode``."""
        return self.rungs[mode].sequence

    def named(self) -> list[tuple[str, GroupT]]:
        """Every group by a name, some of them twice; the same names in order on every rank."""
        pairs = [
            (f"{mode}-{kind}", group)
            for mode, rung in self.rungs.items()
            for kind, group in (("tensor", rung.tensor), ("sequence", rung.sequence))
        ]
        return [*pairs, ("stage", self.shift), ("pipeline", self.pipeline)]

    def mapped(self, change: Callable[[GroupT], OtherT]) -> Groups[OtherT]:
        """``change(group)`` in the place of each group."""
        changed = iter([change(group) for _, group in self.named()])
        return Groups(
            rungs={
                mode: RungGroups(tensor=next(changed), sequence=next(changed))
                for mode in self.rungs
            },
            shift=next(changed),
            pipeline=next(changed),
        )


# Ranks inside the replica, in group order.
GroupMembers: TypeAlias = Groups[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class RankGroups(Groups["Communicator"]):
    """Communicators of one rank; a group of size 1 is a :class:`SoloCommunicator`."""

    @classmethod
    def of(cls, groups: Groups[Communicator]) -> RankGroups:
        return cls(rungs=groups.rungs, shift=groups.shift, pipeline=groups.pipeline)

    @property
    def num_stages(self) -> int:
        return self.pipeline.size

    @property
    def stage(self) -> int:
        return self.pipeline.rank

    def timed(self) -> tuple[RankGroups, list[TimedCommunicator]]:
        """The same groups, those of more than one rank timed."""
        timers = {
            id(group): TimedCommunicator(group) for _, group in self.named() if group.size > 1
        }
        timed = self.mapped(lambda group: timers.get(id(group), group))
        return RankGroups.of(timed), list(timers.values())


def solo_groups() -> RankGroups:
    """The groups of a world of one rank."""
    solo = SoloCommunicator()
    pair: RungGroups[Communicator] = RungGroups(tensor=solo, sequence=solo)
    return RankGroups(rungs=dict.fromkeys(ENDS, pair), shift=solo, pipeline=solo)


def group_members(plan: ParallelPlan, rank: int) -> GroupMembers:
    """The groups of ``rank`` (0 <= rank < pp*sp*tp) under ``plan``."""
    me = rank_coords(plan, rank)

    def at(*, p: int = me.p, s: int = me.s, t: int = me.t) -> int:
        return rank_of(plan, RankCoords(p=p, s=s, t=t))

    blocks = tuple(at(s=s, t=t) for t in range(plan.tp) for s in range(plan.sp))

    def pair(mode: Mode) -> RungGroups[tuple[int, ...]]:
        sp = plan.rung(mode).sp
        t, s = divmod(me.shift_index(plan), sp)
        return RungGroups(tensor=blocks[s::sp], sequence=blocks[t * sp : (t + 1) * sp])

    return Groups(
        rungs={mode: pair(mode) for mode in plan.modes},
        shift=blocks,
        pipeline=tuple(at(p=p) for p in range(plan.pp)),
    )


def all_groups(plan: ParallelPlan) -> list[tuple[str, tuple[int, ...]]]:
    """Every group of more than one rank of a replica, once each, the same list on every rank.

    Groups of equal members are one, with the name of the first.
    """
    found: dict[tuple[int, ...], str] = {}
    for rank in range(plan.replica_size):
        for name, members in group_members(plan, rank).named():
            if len(members) > 1:
                found.setdefault(members, name)
    return [(name, members) for members, name in found.items()]


def build_groups(
    plan: ParallelPlan, rank: int, make: Callable[[str, Sequence[int]], Communicator]
) -> RankGroups:
    """The communicators of ``rank``.

    ``make(name, members_in_order)`` is called once for each of its groups of more than one rank, as
    :func:`all_groups` lists them.
    """
    solo = SoloCommunicator()
    made: dict[tuple[int, ...], Communicator] = {
        members: make(name, members) for name, members in all_groups(plan) if rank in members
    }
    groups = group_members(plan, rank).mapped(lambda members: made.get(members, solo))
    return RankGroups.of(groups)
