"""Operator times as a small table: what a profile knows, asked by shape. No torch, no sklearn."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from tuner.work.counts import Collective, CollectiveKind, GemmShape


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A piecewise straight line through measured points, x rising; straight on beyond them."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def at(self, x: float) -> float:
        xs, ys = self.x, self.y
        if len(xs) == 1:
            return ys[0] * max(1.0, x / xs[0]) if xs[0] else ys[0]
        right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
        left = right - 1
        slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
        if x < xs[0]:
            return ys[0]
        # Noise may make the last stretch fall; time never does.
        if x > xs[-1]:
            slope = max(slope, ys[-1] / xs[-1] * 0.5)
            return ys[-1] + (x - xs[-1]) * slope
        return ys[left] + (x - xs[left]) * slope


@dataclass(frozen=True, kw_only=True)
class GemmCurve:
    """Seconds of ``[m, k] @ [k, n]`` over m, with ``active_ranks`` ranks at work."""

    n: int
    k: int
    active_ranks: int
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class GemmLaw:
    """Seconds of shapes nobody measured: per call, FLOP, weight and moved activation."""

    active_ranks: int
    per_call_s: float
    per_flop_s: float
    per_weight_s: float
    per_activation_s: float

    def seconds(self, gemm: GemmShape, rows: float) -> float:
        weights = float(gemm.n * gemm.k)
        return (
            self.per_call_s
            + self.per_flop_s * 2.0 * rows * weights
            + self.per_weight_s * weights
            + self.per_activation_s * rows * (gemm.n + gemm.k)
        )


@dataclass(frozen=True, kw_only=True)
class AttentionLaw:
    """Seconds of paged attention in one layer: per call, sequence, pair and channel."""

    active_ranks: int
    per_call_s: float
    per_seq_s: float
    per_pair_channel_s: float

    def seconds(self, num_seqs: float, pairs: float, width: int) -> float:
        if num_seqs <= 0:
            return 0.0
        return self.per_call_s + self.per_seq_s * num_seqs + self.per_pair_channel_s * pairs * width


@dataclass(frozen=True, kw_only=True)
class ElementwiseLaw:
    """Seconds of one layer's small operations: per call, and per row and channel."""

    active_ranks: int
    per_call_s: float
    per_channel_s: float


@dataclass(frozen=True, kw_only=True)
class CollectiveCurve:
    """Seconds of one collective over the bytes one rank hands in."""

    kind: CollectiveKind
    ranks: int
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class CollectiveLaw:
    """A measured curve, paid ``hops`` times."""

    hops: float
    curve: Curve

    def seconds(self, collective: Collective) -> float:
        """Seconds of all ``count`` collectives."""
        return collective.count * self.hops * self.curve.at(collective.num_bytes)


class _Law(Protocol):
    @property
    def active_ranks(self) -> int: ...


LawT = TypeVar("LawT", bound=_Law)


@dataclass(frozen=True, kw_only=True)
class OperatorTable:
    """Measured operators, looked up by shape and by how many ranks work at once.

    Unmeasured numbers of ranks use the largest measured one below; collectives over more members
    than measured pay for the further hops (``(ranks - 1)`` times per hop).
    """

    gemms: tuple[GemmCurve, ...]
    gemm_laws: tuple[GemmLaw, ...]
    prefill_laws: tuple[AttentionLaw, ...]
    decode_laws: tuple[AttentionLaw, ...]
    elementwise_laws: tuple[ElementwiseLaw, ...]
    collectives: tuple[CollectiveCurve, ...]

    def gemm_curve(self, gemm: GemmShape, active_ranks: int) -> Curve:
        """Seconds over rows of one product: measured if possible, else by the law."""
        active = _most_below([g.active_ranks for g in self.gemms], active_ranks)
        for known in self.gemms:
            if (known.n, known.k, known.active_ranks) == (gemm.n, gemm.k, active):
                return known.curve
        law = _pick(self.gemm_laws, active_ranks)
        rows = tuple(sorted({x for known in self.gemms for x in known.curve.x}))
        return Curve(x=rows, y=tuple(law.seconds(gemm, m) for m in rows))

    def prefill_law(self, active_ranks: int) -> AttentionLaw:
        return _pick(self.prefill_laws, active_ranks)

    def decode_law(self, active_ranks: int) -> AttentionLaw:
        return _pick(self.decode_laws, active_ranks)

    def elementwise_law(self, active_ranks: int) -> ElementwiseLaw:
        return _pick(self.elementwise_laws, active_ranks)

    def collective_law(self, kind: CollectiveKind, ranks: int) -> CollectiveLaw:
        """Seconds of one kind over ``ranks`` members; free where none was measured."""
        known = [c for c in self.collectives if c.kind is kind]
        if not known:
            return CollectiveLaw(hops=0.0, curve=Curve(x=(0.0,), y=(0.0,)))
        measured = _most_below([c.ranks for c in known], ranks)
        curve = next(c.curve for c in known if c.ranks == measured)
        return CollectiveLaw(hops=(ranks - 1) / max(1, measured - 1), curve=curve)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> OperatorTable:
        return msgspec.convert(raw, cls)


def _most_below(known: list[int], wanted: int) -> int:
    fitting = [value for value in known if value <= wanted]
    return max(fitting) if fitting else min(known)


def _pick(laws: tuple[LawT, ...], active_ranks: int) -> LawT:
    active = _most_below([law.active_ranks for law in laws], active_ranks)
    return next(law for law in laws if law.active_ranks == active)
