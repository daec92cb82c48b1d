"""The part of a weight, packed once, that each mode multiplies with.

Where the compiled library reads a part of a packed weight as it lies, the whole is packed and every
mode has its part. Elsewhere, or where a shard begins within what lies together, the weight is cut
where the shard of any mode begins or ends, each piece is packed, and a mode has those inside its
own::

    base  [ a | b | c ]      2x4  [ b | c ]      shift  [ b ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from engine.parallel import int8
from engine.parallel.few_rows import KINDS, PieceFields, has_parts
from engine.parallel.packed import can_pack, pack, place_and_bytes
from engine.parallel.quantised import Quantised
from engine.spec.modes import Mode

# Rows or columns of a base shard that each mode multiplies with.
Ranges = Mapping[Mode, range]
Weight = Tensor | Quantised


class Piece(Protocol):
    """A packed part of a weight, ``[outputs, inputs]``. ``tensors``: what stays in memory."""

    @property
    def tensors(self) -> list[Tensor]: ...

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, total: Tensor | None = None
    ) -> Tensor:
        """``x[n, inputs]`` -> ``[n, outputs]``, plus ``bias[outputs]`` or ``total[n, outputs]``."""
        ...

    def fields(self, bias: Tensor | None) -> PieceFields | None:
        """What the compiled library is told of it, with ``bias[outputs]``; None if that cannot
        multiply it.
        """
        ...


class Whole(Piece, Protocol):
    """A packed weight, parts of which may be read where they lie."""

    def part(self, outputs: range, inputs: range) -> Piece | None:
        """Only these outputs and inputs; None if they cannot be read in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shards:
    """For each mode the pieces that it multiplies with, in order, each with its place in the base
    shard. ``tensors``: what stays in memory.
    """

    tensors: list[Tensor]
    by_mode: Mapping[Mode, Sequence[tuple[range, Piece]]]


def packed_shards(weight: Weight, ranges: Ranges, *, dim: int) -> Shards | None:
    """``weight[outputs, inputs]`` packed; a mode has a range of its rows (``dim`` 0) or columns
    (1). None if it cannot be packed, or if that would take more bytes.
    """
    if isinstance(weight, Quantised) and weight.is_grouped:
        return None
    found = parts_of_whole(weight, ranges, dim=dim)
    return pieces_between_cuts(weight, ranges, dim=dim) if found is None else found


def parts_of_whole(weight: Weight, ranges: Ranges, *, dim: int) -> Shards | None:
    """The whole packed, of which each mode reads a part; None where one cannot."""
    outputs, inputs = (range(size) for size in _shape(weight))
    all_of_it = (outputs, inputs)[dim]
    is_cut = any(kept != all_of_it for kept in ranges.values())
    if is_cut and not _has_parts(weight):
        return None
    if (whole := _pack(weight)) is None:
        return None
    by_mode: dict[Mode, list[tuple[range, Piece]]] = {}
    for mode, kept in ranges.items():
        piece: Piece | None = whole
        if kept != all_of_it:
            piece = whole.part(kept, inputs) if dim == 0 else whole.part(outputs, kept)
        if piece is None:
            return None
        by_mode[mode] = [(kept, piece)]
    return Shards(tensors=whole.tensors, by_mode=by_mode)


def pieces_between_cuts(weight: Weight, ranges: Ranges, *, dim: int) -> Shards | None:
    """Each piece between two cuts packed by itself; None where one cannot be."""
    pieces: list[tuple[range, Piece]] = []
    for cut in _cuts(ranges, _shape(weight)[dim]):
        piece = _pack(_narrowed(weight, cut, dim=dim))
        if piece is None:
            return None
        pieces.append((cut, piece))
    return Shards(
        tensors=[tensor for _, piece in pieces for tensor in piece.tensors],
        by_mode={
            mode: [
                (cut, piece)
                for cut, piece in pieces
                if kept.start <= cut.start and cut.stop <= kept.stop
            ]
            for mode, kept in ranges.items()
        },
    )


def _pack(weight: Weight) -> Whole | None:
    if isinstance(weight, Quantised):
        return int8.PackedInt8(weight) if int8.can_pack(weight) else None
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return None
    packed = pack(weight)
    is_padded = place_and_bytes(packed.tensor)[1] > weight.nbytes
    return None if is_padded else packed


def _has_parts(weight: Weight) -> bool:
    if isinstance(weight, Quantised):
        return int8.has_parts()
    kind = KINDS.get(weight.dtype)
    return kind is not None and has_parts(kind)


def _shape(weight: Weight) -> tuple[int, int]:
    outputs, inputs = weight.values.shape if isinstance(weight, Quantised) else weight.shape
    return outputs, inputs


def _narrowed(weight: Weight, cut: range, *, dim: int) -> Weight:
    if isinstance(weight, Tensor):
        return weight.narrow(dim, cut.start, len(cut))
    return weight.rows(cut) if dim == 0 else weight.columns(cut)


def _cuts(ranges: Ranges, size: int) -> list[range]:
    """The fewest ranges that make up 0 to ``size`` and every one of ``ranges``."""
    edges = {0, size}.union(*((kept.start, kept.stop) for kept in ranges.values()))
    return [range(start, stop) for start, stop in pairwise(sorted(edges))]
