"""Products with the weight of one rank, in the shard that a mode asks for.

A plain weight is read through views, and a quantised one through views of its numbers and of their
scales. On a CPU both are packed, and one packed copy serves all modes
(:mod:`engine.parallel.shards`). Where the compiled library can read parts of a packed weight in
place, each mode has its part. Elsewhere a mode has several pieces: products of pieces of the
outputs lie side by side, those of pieces of the inputs are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.kernels.linear import linear
from engine.parallel import quantised
from engine.parallel.few_rows import PieceFields
from engine.parallel.plain import Plain
from engine.parallel.quantised import Quantised
from engine.parallel.shards import Piece, Ranges, Shards, Weight, packed_shards
from engine.spec.modes import Mode


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


def split_outputs(
    weight: Weight, bias: Tensor | None, rows: Ranges, *, may_pack: bool
) -> OutputProduct:
    """``weight[base shard, d]`` and ``bias[base shard]``, of which a mode has ``rows``."""
    if may_pack and (shards := packed_shards(weight, rows, dim=0)) is not None:
        return PackedOutputs(shards, bias)
    if isinstance(weight, Quantised):
        return QuantisedOutputs(weight, bias, rows)
    return PlainOutputs(weight, bias, rows)


def split_inputs(weight: Weight, columns: Ranges, *, may_pack: bool) -> InputProduct:
    """``weight[d, base shard]``, of which a mode has ``columns``."""
    if may_pack and (shards := packed_shards(weight, columns, dim=1)) is not None:
        return PackedInputs(shards)
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
    """Packed rows. ``bias`` [base shard]."""

    def __init__(self, shards: Shards, bias: Tensor | None) -> None:
        self.tensors = shards.tensors if bias is None else [*shards.tensors, bias]
        self._parts = {
            mode: [(piece, None if bias is None else bias[_slice(kept)]) for kept, piece in parts]
            for mode, parts in shards.by_mode.items()
        }

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        found = [piece(x, bias) for piece, bias in self._parts[mode]]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def find_pieces(self, mode: Mode) -> list[PieceFields] | None:
        """What the compiled library is told of the mode's pieces, side by side; None where it does
        not multiply all of them.
        """
        return _fields(self._parts[mode])


class PackedInputs:
    """Packed columns; sums are rounded piece by piece."""

    def __init__(self, shards: Shards) -> None:
        self.tensors = shards.tensors
        self._parts = {
            mode: [
                (piece, slice(kept.start - parts[0][0].start, kept.stop - parts[0][0].start))
                for kept, piece in parts
            ]
            for mode, parts in shards.by_mode.items()
        }

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


def _slice(kept: range) -> slice:
    return slice(kept.start, kept.stop)
