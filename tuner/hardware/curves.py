"""Operator times of one device: rooflines with fitted shares of the peaks, a boosted correction in
log space that fades outside its data, and curves of collectives over size.

Coefficients only, saved as versioned JSON with their provenance by ``python -m
tuner.calibration.fit``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import exp, log
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tuner.hardware.physics import FloatArray, Work
from tuner.spec.errors import TunerError

IntArray = npt.NDArray[np.int64]
SCHEMA = "curves/v1"
LEAF = -1
LEAF_UNIT = 1e-4  # leaves are whole multiples of it, in log seconds
TABLE_STEP = 0.05  # between log sizes
# How the members of a collective are joined.
IN_NODE = "node"
ACROSS_NODES = "nodes"
FADE_PER_LOG = 2.0  # the correction halves with every factor 1.4 outside its data


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """``call_s + (compute^p + memory^p)^(1/p)``: seconds at shares of the data sheet's peaks."""

    call_s: float
    flop_share: float
    byte_share: float
    sharpness: float

    def seconds(self, work: Work) -> FloatArray:
        p = self.sharpness
        compute, memory = work.flop_s / self.flop_share, work.byte_s / self.byte_share
        # Scaled by the larger, so that no power under- or overflows.
        larger = np.maximum(compute, memory)
        smaller = np.minimum(compute, memory) / larger
        return np.asarray(self.call_s + larger * (1.0 + smaller**p) ** (1.0 / p))


@dataclass(frozen=True, kw_only=True)
class PackedTrees:
    """A sum of regression trees: all nodes in one row, each tree in preorder.

    Node i with ``feature[i]`` -1 is a leaf of ``value[i] * LEAF_UNIT``. Else a row goes to node
    i+1 where its variable is at most ``thresholds[feature[i]][value[i]]``, else past the subtree
    that starts there.
    """

    baseline: float
    thresholds: tuple[tuple[float, ...], ...]
    feature: tuple[int, ...]
    value: tuple[int, ...]

    @cached_property
    def _walk(self) -> _Walk:
        return _Walk.of(self)

    def predict(self, rows: FloatArray) -> FloatArray:
        """f8[R] of variables f8[R, V]."""
        walk = self._walk
        total = np.full(len(rows), self.baseline)
        values, width = rows.ravel(), rows.shape[1]
        for root in walk.roots:
            # Rows that reach a leaf leave the walk, because most trees have only one deep branch.
            row = np.arange(len(rows))
            node = np.full(len(rows), root)
            while len(row):
                is_leaf = walk.feature[node] == LEAF
                total[row[is_leaf]] += walk.cut[node[is_leaf]]
                row, node = row[~is_leaf], node[~is_leaf]
                # Each row looks at its own variable: one index into the flat array instead of two.
                is_left = values[row * width + walk.feature[node]] <= walk.cut[node]
                node = np.where(is_left, node + 1, walk.right[node])
        return total


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """Packed trees unpacked: ``cut`` is a split's threshold or a leaf's answer."""

    roots: tuple[int, ...]
    feature: IntArray
    cut: FloatArray
    right: IntArray

    @classmethod
    def of(cls, packed: PackedTrees) -> _Walk:
        """Right children are found from the end, because in preorder a split's two subtrees follow
        it."""
        subtrees: list[int] = []
        right = np.zeros(len(packed.feature), dtype=np.int64)
        for node in reversed(range(len(packed.feature))):
            if packed.feature[node] != LEAF:
                subtrees.pop()
                right[node] = subtrees.pop()
            subtrees.append(node)
        cut = [
            value * LEAF_UNIT if feature == LEAF else packed.thresholds[feature][value]
            for feature, value in zip(packed.feature, packed.value, strict=True)
        ]
        return cls(
            roots=tuple(reversed(subtrees)),
            feature=np.array(packed.feature, dtype=np.int64),
            cut=np.array(cut, dtype=np.float64),
            right=right,
        )


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The log of measured over roofline, with the range of sizes it was fitted on."""

    trees: PackedTrees
    low: tuple[float, ...]
    high: tuple[float, ...]

    def logs(self, work: Work) -> FloatArray:
        """f8[R]; fades to 0 outside the range."""
        sizes = work.variables[:, : len(self.low)]
        excess = np.maximum(np.maximum(np.array(self.low) - sizes, sizes - np.array(self.high)), 0)
        weight = np.exp(-FADE_PER_LOG * excess.sum(axis=1))
        return np.asarray(weight * self.trees.predict(work.variables))


@dataclass(frozen=True, kw_only=True)
class OperatorCurve:
    """Seconds of one kind of operator."""

    roofline: Roofline
    correction: Correction | None = None

    def seconds(self, work: Work) -> FloatArray:
        """f8[R] of R calls."""
        seconds = self.roofline.seconds(work)
        if self.correction is None:
            return seconds
        return np.asarray(seconds * np.exp(self.correction.logs(work)))


@dataclass(frozen=True, kw_only=True)
class SizeCurve:
    """``(call_s + bytes / bytes_per_s) * exp(correction)``, made never to fall.

    The correction is straight between knots over the log of bytes, and constant beyond them.
    """

    call_s: float
    bytes_per_s: float
    log_size: tuple[float, ...]
    correction: tuple[float, ...]

    def seconds(self, size: float) -> float:
        """Linear between the logs of a fine table; in proportion to size beyond it."""
        first, values = self._table
        place = (log(max(size, 1.0)) - first) / TABLE_STEP
        if place <= 0:
            return exp(values[0])
        left = int(place)
        last = len(values) - 1
        if left >= last:
            return exp(values[last] + (place - last) * TABLE_STEP)
        return exp(values[left] + (place - left) * (values[left + 1] - values[left]))

    def slowed(self, ratio: float) -> SizeCurve:
        """The curve for ``ratio`` times as many bytes, as of a link that is that much slower."""
        shifted = tuple(x - log(ratio) for x in self.log_size)
        return replace(self, bytes_per_s=self.bytes_per_s / ratio, log_size=shifted)

    @cached_property
    def _table(self) -> tuple[float, list[float]]:
        """The log of the first size, and log seconds at equal steps from there."""
        first, last = self.log_size[0], self.log_size[-1]
        x = np.arange(first, last + TABLE_STEP, TABLE_STEP)
        law = np.log(self.call_s + np.exp(x) / self.bytes_per_s)
        y = law + np.interp(x, self.log_size, self.correction)
        return first, np.maximum.accumulate(y).tolist()


@dataclass(frozen=True, kw_only=True)
class CollectiveCurve:
    """One collective among ``ranks`` devices joined by ``topology``, over bytes.

    ``via`` is the way it is done: ``graph`` and ``eager`` are the engine's own all-reduce inside
    and outside of a captured graph, ``nccl`` the library. Bytes are counted as in nccl-tests: those
    of the whole tensor, in a gather of the gathered one.
    """

    kind: str
    via: str
    topology: str
    ranks: int
    curve: SizeCurve


@dataclass(frozen=True, kw_only=True)
class SmallLaw:
    """``call_s`` or the memory's time, whichever is longer (smoothly): norms and the like."""

    call_s: float
    bytes_per_s: float
    sharpness: float

    def seconds(self, num_bytes: float) -> float:
        p = self.sharpness
        moved = num_bytes / self.bytes_per_s / self.call_s
        return float(self.call_s * (1.0 + moved**p) ** (1.0 / p))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Error on groups the fit never saw. ``interval`` is the 90 % quantile of |log error|."""

    rows: int
    groups: int
    median: float
    p90: float
    p99: float
    worst: float
    interval: float


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """One data file the coefficients were fitted on."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Everything fitted for one device. ``gemm`` and ``held_out`` by number format or operator.

    ``borrowed`` says which parts are another device's.
    """

    device: str
    gemm: dict[str, OperatorCurve]
    prefill: OperatorCurve
    decode: OperatorCurve
    collectives: tuple[CollectiveCurve, ...]
    small: dict[str, SmallLaw]
    held_out: dict[str, HeldOut]
    sources: tuple[Provenance, ...]
    borrowed: tuple[str, ...] = ()
    licence: str = ""
    command: str = ""
    created: str = ""
    schema: str = field(default=SCHEMA)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> Curves:
        """Read saved curves.

        Raises:
            TunerError: another schema, or a part that is missing or of the wrong kind, named.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        try:
            return msgspec.convert(raw, cls)
        except (msgspec.ValidationError, IndexError) as error:
            raise TunerError(f"{where}: {error}") from error

    def collective(self, kind: str, via: str, ranks: int, topology: str) -> SizeCurve:
        """The curve of the nearest measured number of ranks not below ``ranks`` (else the most).

        Raises:
            TunerError: this kind was not measured.
        """
        found = self.find_collective(kind, via, ranks, topology)
        if found is None:
            raise TunerError(f"{self.device}: no curve of {kind} via {via} over {topology}")
        return found

    def find_collective(self, kind: str, via: str, ranks: int, topology: str) -> SizeCurve | None:
        """As :meth:`collective`; None where this kind was not measured."""
        known = {
            c.ranks: c.curve
            for c in self.collectives
            if (c.kind, c.via, c.topology) == (kind, via, topology)
        }
        if not known:
            return None
        fitting = [measured for measured in known if measured >= ranks]
        return known[min(fitting) if fitting else max(known)]

    def is_measured(self, topology: str) -> bool:
        """Whether there are collectives over ``topology``."""
        return any(c.topology == topology for c in self.collectives)

    def without(self, topology: str) -> Curves:
        """The same curves without the collectives over ``topology``."""
        kept = tuple(c for c in self.collectives if c.topology != topology)
        return replace(self, collectives=kept)

    def joined(self, other: Curves, topology: str) -> Curves:
        """The same curves with the collectives of ``other`` over ``topology`` too."""
        theirs = tuple(c for c in other.collectives if c.topology == topology)
        return replace(
            self,
            collectives=self.collectives + theirs,
            borrowed=(*self.borrowed, f"collectives of {other.device}"),
        )

    def slowed(self, topology: str, ratio: float) -> Curves:
        """The same curves where links of ``topology`` are ``ratio`` times slower."""
        changed = tuple(
            replace(c, curve=c.curve.slowed(ratio)) if c.topology == topology else c
            for c in self.collectives
        )
        return replace(self, collectives=changed)
