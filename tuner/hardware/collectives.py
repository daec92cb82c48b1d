"""Collectives of one plan: which devices of which nodes take part, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.spec.plan import ParallelPlan
from tuner.hardware.curves import ACROSS_NODES, IN_NODE, Curves, SizeCurve
from tuner.hardware.device import DeviceSpec
from tuner.hardware.links import LinkSpec
from tuner.work.counts import Collective, CollectiveKind

GRAPH, EAGER = "graph", "eager"
SMALL_BYTES = 1024.0  # of no influence on a collective's time


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A group of ``per_node`` devices on each of ``nodes`` nodes."""

    per_node: int
    nodes: int


@dataclass(frozen=True)
class Placement:
    """Where the ranks of one replica lie: one after the other, the first at the start of a node."""

    plan: ParallelPlan
    devices_per_node: int

    def spread(self, collective: Collective) -> Spread:
        """Tensor groups are neighbours; sequence groups take every tp-th rank of a stage."""
        ranks, size = collective.ranks, self.devices_per_node
        is_sequence = ranks == self.plan.sp and collective.kind is not CollectiveKind.ALL_REDUCE
        stride = self.plan.tp if is_sequence and ranks < self.plan.stage_size else 1
        per_node = min(ranks, max(1, size // stride))
        return Spread(per_node=per_node, nodes=-(-ranks // per_node))

    def is_far(self, stage: int) -> bool:
        """Whether a rank of ``stage`` gets its rows from another node."""
        size, node = self.plan.stage_size, self.devices_per_node
        ranks = range(stage * size, (stage + 1) * size)
        return stage > 0 and any(rank // node != (rank - size) // node for rank in ranks)


Seconds = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Seconds over bytes, paid ``times`` times for ``size`` times the collective's bytes."""

    seconds: Seconds
    size: float = 1.0
    times: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Law:
    """A collective as a sum of simpler ones."""

    parts: tuple[_Part, ...]

    def seconds(self, num_bytes: float) -> float:
        return sum(part.times * part.seconds(part.size * num_bytes) for part in self.parts)


class CollectiveTimes:
    """Seconds of collectives of one replica of ``plan`` on nodes of ``device``.

    They come from ``curves`` if the device's links were measured, else from the links' laws;
    ``launch`` is graph or eager.
    """

    def __init__(
        self, device: DeviceSpec, curves: Curves | None, plan: ParallelPlan, launch: str
    ) -> None:
        self._device, self._curves, self._launch = device, curves, launch
        self._placement = Placement(plan, device.devices_per_node)
        self._laws: dict[tuple[CollectiveKind, int, bool], _Law] = {}

    def is_far(self, stage: int) -> bool:
        """Whether what enters ``stage`` comes from another node."""
        return self._placement.is_far(stage)

    def seconds(self, collective: Collective, *, is_far: bool = False) -> float:
        """All ``count`` equal collectives; ``is_far`` is about sends."""
        key = (collective.kind, collective.ranks, is_far)
        law = self._laws.get(key)
        if law is None:
            law = self._laws[key] = self._law(collective, is_far=is_far)
        return collective.count * law.seconds(collective.num_bytes)

    def issue_s(self, collective: Collective) -> float:
        """How long the host takes to issue all ``count`` all-reduces one by one: each as long as
        the smallest one took in a loop, in which only the host is waited for.
        """
        if self._launch != EAGER or collective.kind is not CollectiveKind.ALL_REDUCE:
            return 0.0
        eager = self._measured(collective.kind, EAGER, collective.ranks)
        return collective.count * eager.seconds(SMALL_BYTES) if eager is not None else 0.0

    def _law(self, collective: Collective, *, is_far: bool) -> _Law:
        """The law of a collective: in one node as measured. Across nodes, every device reduces (or
        gathers) a part inside its node and passes it round a ring of the nodes, hierarchically
        like NCCL's rings.
        """
        kind = collective.kind
        if kind is CollectiveKind.SEND:
            far = _Part(seconds=self._far(), size=self._crowd)
            return _Law(parts=(far if is_far else _Part(seconds=self._near(kind, 2)),))
        spread = self._placement.spread(collective)
        parts = []
        if spread.per_node > 1:
            near = self._near(kind, spread.per_node)
            parts.append(_Part(seconds=near, size=_near_share(kind, spread)))
        if spread.nodes > 1:
            size = self._crowd * _far_share(kind, collective.ranks, spread)
            rounds = (2.0 if kind is CollectiveKind.ALL_REDUCE else 1.0) * (spread.nodes - 1)
            parts.append(_Part(seconds=self._far(), size=size, times=rounds))
        return _Law(parts=tuple(parts))

    @property
    def _crowd(self) -> float:
        """How many devices of a stage share one way out of their node."""
        busy = min(self._placement.plan.stage_size, self._device.devices_per_node)
        return max(1.0, busy / self._device.adapters_per_node)

    def _near(self, kind: CollectiveKind, ranks: int) -> Seconds:
        """Inside one node, by its curve or by the link's law."""
        via = GRAPH if kind is CollectiveKind.ALL_REDUCE else "nccl"
        curve = self._measured(kind, via, ranks)
        if curve is None:
            link = self._device.link
            return lambda num_bytes: link.seconds(kind, ranks, num_bytes)
        if self._launch != EAGER or kind is CollectiveKind.SEND:
            return _of_whole(curve, ranks if kind is CollectiveKind.ALL_GATHER else 1, 0.0)
        if kind is CollectiveKind.ALL_REDUCE:
            return self._eager_all_reduce(curve, ranks)
        # NCCL's curves come from a loop in C. From Python it runs on its own stream, which takes
        # turns with that of the layers. This costs about as much as small all-reduces differ when
        # timed both ways.
        return _of_whole(
            curve, ranks if kind is CollectiveKind.ALL_GATHER else 1, self._eager_extra_s(ranks)
        )

    def _eager_all_reduce(self, replayed: SizeCurve, ranks: int) -> Seconds:
        """Seconds on the device. Measured times of small ones hold a wait for the host; in a step
        the host runs ahead (see :meth:`issue_s`), so that wait is taken off. Large ones are copied
        to where the other ranks can read them.
        """
        eager = self._measured(CollectiveKind.ALL_REDUCE, EAGER, ranks)
        if eager is None:
            return replayed.seconds
        extra_s = self._eager_extra_s(ranks)
        return lambda num_bytes: max(
            replayed.seconds(num_bytes), eager.seconds(num_bytes) - extra_s
        )

    def _eager_extra_s(self, ranks: int) -> float:
        """How much longer a small all-reduce takes when it is issued by itself."""
        kind = CollectiveKind.ALL_REDUCE
        eager, replayed = (self._measured(kind, via, ranks) for via in (EAGER, GRAPH))
        if eager is None or replayed is None:
            return 0.0
        return max(0.0, eager.seconds(SMALL_BYTES) - replayed.seconds(SMALL_BYTES))

    def _measured(self, kind: CollectiveKind, via: str, ranks: int) -> SizeCurve | None:
        if self._curves is None:
            return None
        return self._curves.find_collective(kind.value, via, ranks, IN_NODE)

    def _far(self) -> Seconds:
        """One device's send to another node."""
        link = self._device.between_nodes
        curve = self._measured_far(link)
        if curve is not None:
            return curve.seconds
        return lambda num_bytes: link.seconds(CollectiveKind.SEND, 2, num_bytes)

    def _measured_far(self, link: LinkSpec) -> SizeCurve | None:
        if self._curves is None or link.measured_on is None:
            return None
        kind = CollectiveKind.SEND.value
        return self._curves.find_collective(kind, "nccl", 2, ACROSS_NODES)


def _near_share(kind: CollectiveKind, spread: Spread) -> float:
    """Share of the collective's bytes that its part inside a node handles."""
    match kind:
        case CollectiveKind.ALL_GATHER:
            return float(spread.nodes)  # parts from other nodes are passed on
        case CollectiveKind.ALL_TO_ALL:
            return 1.0 / spread.nodes  # neighbours get theirs directly
        case _:
            return 1.0


def _far_share(kind: CollectiveKind, ranks: int, spread: Spread) -> float:
    """Share of the collective's bytes that one device sends to another node in a round."""
    match kind:
        case CollectiveKind.ALL_REDUCE:
            return 1.0 / ranks  # its part of the sum over its node
        case CollectiveKind.ALL_TO_ALL:
            return spread.per_node / ranks  # what the other node's devices shall have
        case _:
            return 1.0


def _of_whole(curve: SizeCurve, ranks: int, issue_s: float) -> Seconds:
    """A gather's curve counts the gathered tensor, the collective one rank's part."""
    if ranks == 1 and issue_s == 0.0:
        return curve.seconds
    return lambda num_bytes: issue_s + curve.seconds(ranks * num_bytes)
