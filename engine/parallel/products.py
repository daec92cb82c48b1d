"""Products with the weight of one rank, in the shard that a mode asks for.

A plain weight is read through views. A packed one has none: it is cut where the shard of any mode
begins or ends, and each mode multiplies with the pieces inside its own, so that one packed copy
serves all::

    base  [ a | b | c ]      2x4  [ b | c ]      shift  [ b ]

Products of pieces of the output lie side by side, those of pieces of the input are summed.

A quantised weight is read through views too, of its numbers and of their scales; on a CPU int8 is
packed, piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from engine.kernels.linear import linear
from engine.parallel import int8, quantised
from engine.parallel.few_rows import PieceFields
from engine.parallel.packed import can_pack, pack, place_and_bytes
from engine.parallel.plain import Plain
from engine.parallel.quantised import Quantised
from engine.spec.modes import Mode

# Rows or columns of a base shard that each mode multiplies with.
Ranges = Mapping[Mode, range]
Weight = Tensor | Quantised


class OutputProduct(Protocol):
    """A weight whose outputs are split. ``tensors``: what stays in memory."""

    tensors: list[Tensor]

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        """``x[n, d]`` -> ``[n, outputs of the mode's shard]``, with their bias."""
        ...


class InputProduct(Protocol):
    """A weight whose inputs are split. ``tensors``: what stays in memory."""

    tensors: list[Tensor]

    def __call__(self, x: Tensor, mode: Mode, bias: Tensor | None = None) -> Tensor:
        """``x[n, inputs of the mode's shard]`` -> this rank's part of the sum ``[n, d]``.

        ``bias[d]`` is added where this part is the whole.
        """
        ...


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
        """What the compiled library is told of it, with ``bias[outputs]``; None where that does not
        multiply it.
        """
        ...


def split_outputs(
    weight: Weight, bias: Tensor | None, rows: Ranges, *, may_pack: bool
) -> OutputProduct:
    """``weight[base shard, d]`` and ``bias[base shard]``, of which a mode has ``rows``."""
    cuts = _cuts(rows, weight.shape[0])
    pieces: Sequence[Piece] | None = None
    if isinstance(weight, Quantised):
        pieces = _int8_pieces([weight.rows(cut) for cut in cuts]) if may_pack else None
    elif may_pack:
        pieces = _packed_pieces(weight, cuts, dim=0)
    if pieces:
        return PackedOutputs(pieces, cuts, bias, rows)
    if isinstance(weight, Quantised):
        return QuantisedOutputs(weight, bias, rows)
    return PlainOutputs(weight, bias, rows)


def split_inputs(weight: Weight, columns: Ranges, *, may_pack: bool) -> InputProduct:
    """``weight[d, base shard]``, of which a mode has ``columns``."""
    cuts = _cuts(columns, weight.shape[1])
    pieces: Sequence[Piece] | None = None
    if isinstance(weight, Quantised):
        is_int8 = may_pack and not weight.is_grouped
        pieces = _int8_pieces([weight.columns(cut) for cut in cuts]) if is_int8 else None
    elif may_pack:
        pieces = _packed_pieces(weight, cuts, dim=1)
    if pieces:
        return PackedInputs(pieces, cuts, columns)
    if isinstance(weight, Quantised):
        return QuantisedInputs(weight, columns)
    return PlainInputs(weight, columns)


class PlainOutputs:
    """Rows of a plain weight, each mode's a view."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: Ranges) -> None:
        self.tensors = [weight] if bias is None else [weight, bias]
        self._views = {
            mode: Plain(weight[_slice(kept)], None if bias is None else bias[_slice(kept)])
            for mode, kept in rows.items()
        }

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        return self._views[mode](x)


class PlainInputs:
    """Columns of a plain weight, each mode's a view (strided, which BLAS reads as it is)."""

    def __init__(self, weight: Tensor, columns: Ranges) -> None:
        self.tensors = [weight]
        self._views = {mode: weight[:, _slice(kept)] for mode, kept in columns.items()}

    def __call__(self, x: Tensor, mode: Mode, bias: Tensor | None = None) -> Tensor:
        return linear(x, self._views[mode], bias)


class QuantisedOutputs:
    """Rows of a quantised weight, each mode's a view."""

    def __init__(self, weight: Quantised, bias: Tensor | None, rows: Ranges) -> None:
        self.tensors = weight.tensors if bias is None else [*weight.tensors, bias]
        self._views = {
            mode: (weight.rows(kept), None if bias is None else bias[_slice(kept)])
            for mode, kept in rows.items()
        }

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        weight, bias = self._views[mode]
        return quantised.multiply(x, weight, bias)


class QuantisedInputs:
    """Columns of a quantised weight, each mode's a view."""

    def __init__(self, weight: Quantised, columns: Ranges) -> None:
        self.tensors = weight.tensors
        self._views = {mode: weight.columns(kept) for mode, kept in columns.items()}

    def __call__(self, x: Tensor, mode: Mode, bias: Tensor | None = None) -> Tensor:
        return quantised.multiply(x, self._views[mode], bias)


class PackedOutputs:
    """Packed ``pieces`` of the rows, cut at ``cuts``."""

    def __init__(
        self, pieces: Sequence[Piece], cuts: Sequence[range], bias: Tensor | None, rows: Ranges
    ) -> None:
        tensors = [tensor for piece in pieces for tensor in piece.tensors]
        self.tensors = tensors if bias is None else [*tensors, bias]
        parts = [
            (piece, None if bias is None else bias[_slice(cut)])
            for piece, cut in zip(pieces, cuts, strict=True)
        ]
        self._parts = {mode: [parts[i] for i in _inside(kept, cuts)] for mode, kept in rows.items()}

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        found = [piece(x, bias) for piece, bias in self._parts[mode]]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def find_pieces(self, mode: Mode) -> list[PieceFields] | None:
        """What the compiled library is told of the mode's pieces, side by side; None where it does
        not multiply all of them.
        """
        return _fields(self._parts[mode])


class PackedInputs:
    """Packed ``pieces`` of the columns, cut at ``cuts``; sums are rounded piece by piece."""

    def __init__(self, pieces: Sequence[Piece], cuts: Sequence[range], columns: Ranges) -> None:
        self.tensors = [tensor for piece in pieces for tensor in piece.tensors]
        self._parts: dict[Mode, list[tuple[Piece, slice]]] = {}
        for mode, kept in columns.items():
            self._parts[mode] = [
                (pieces[i], slice(cuts[i].start - kept.start, cuts[i].stop - kept.start))
                for i in _inside(kept, cuts)
            ]

    def __call__(self, x: Tensor, mode: Mode, bias: Tensor | None = None) -> Tensor:
        (first, columns), *others = self._parts[mode]
        total = first(x[:, columns] if others else x, bias)
        for piece, columns in others:
            total = piece(x[:, columns], None, total)
        return total

    def find_pieces(self, mode: Mode, bias: Tensor | None) -> list[PieceFields] | None:
        """What the compiled library is told of the mode's pieces, the first of which adds ``bias``;
        None where it does not multiply all of them.
        """
        first, *others = (piece for piece, _ in self._parts[mode])
        return _fields([(first, bias), *((piece, None) for piece in others)])


def _fields(parts: Sequence[tuple[Piece, Tensor | None]]) -> list[PieceFields] | None:
    found = [fields for piece, bias in parts if (fields := piece.fields(bias)) is not None]
    return found if len(found) == len(parts) else None


def _int8_pieces(pieces: list[Quantised]) -> list[Piece] | None:
    """The ``pieces`` packed; None where there are such that the compiled products do not take."""
    if not all(int8.can_pack(piece) for piece in pieces):
        return None
    return [int8.PackedInt8(piece) for piece in pieces]


def _packed_pieces(weight: Tensor, cuts: Sequence[range], *, dim: int) -> list[Piece] | None:
    """The pieces of ``weight`` between cuts of ``dim``; None where they cannot be packed, or would
    take more bytes.
    """
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return None
    packed: list[Piece] = []
    for cut in cuts:
        piece = weight.narrow(dim, cut.start, len(cut))
        packed.append(pack(piece))
        if place_and_bytes(packed[-1].tensors[0])[1] > piece.nbytes:
            return None
    return packed


def _cuts(ranges: Ranges, size: int) -> list[range]:
    """The fewest ranges that make up 0 to ``size`` and every one of ``ranges``."""
    edges = {0, size}.union(*((kept.start, kept.stop) for kept in ranges.values()))
    return [range(start, stop) for start, stop in pairwise(sorted(edges))]


def _inside(kept: range, cuts: Sequence[range]) -> list[int]:
    return [i for i, cut in enumerate(cuts) if kept.start <= cut.start and cut.stop <= kept.stop]


def _slice(kept: range) -> slice:
    return slice(kept.start, kept.stop)
