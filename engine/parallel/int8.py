"""int8 weights packed once, in the layout that the compiled products of packed_int8.cpp read.

It is our own and no larger than the weight: 16 outputs at a time, four inputs of each side by side.
"""

from __future__ import annotations

from copy import copy
from enum import IntEnum

import torch
from torch import Tensor

from engine.parallel.few_rows import PieceFields
from engine.parallel.int8_library import find_int8
from engine.parallel.quantised import Quantised, multiply
from engine.spec.errors import EngineError

OUTPUTS, INPUTS = 16, 4
# The order of gs_multiply_int8.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# As many digits as keep numbers whole: three, or two for bfloat16 (kWhole of int8_product.h).
WHOLE = 0
# With more rows than this, making the weight plain for a product of BLAS costs less than the first
# way.
MOST_ROWS_OF_FLOATS = 64


class Way(IntEnum):
    """What multiplies, in the order of packed_int8.cpp. A processor also has all ways below its
    own.

    ``FLOATS`` widens weights to float32; the others multiply bytes, by VNNI or AMX.
    """

    FLOATS = 0
    VECTORS = 1
    TILES = 2


class PackedInt8:
    """A packed weight ``[outputs, inputs]`` of int8 with a scale for each output, multiplied in the
    best way up to ``way``; or its :meth:`part`.

    ``digits``: bytes in which the ways of bytes write a number of a row; None: as many as its dtype
    needs, or one where ``weight`` rounds rows.
    """

    def __init__(
        self, weight: Quantised, *, way: Way = Way.TILES, digits: int | None = None
    ) -> None:
        library = find_int8()
        assert library is not None, "asked for before"
        self._multiply = library.gs_multiply_int8
        self._way = min(way, best_way())
        self._rounds_rows = weight.rounds_rows
        self._digits = (1 if weight.rounds_rows else WHOLE) if digits is None else digits
        self.packed = pack(weight.values)
        self.scales = weight.scales[0].contiguous()
        self._inputs = range(self.packed.shape[1])

    def part(self, outputs: range, inputs: range) -> PackedInt8 | None:
        """Only these outputs and inputs, read in place; None if they begin or end within what is
        packed together, or if floats are multiplied.
        """
        ends = {outputs.stop % OUTPUTS} if outputs.stop < len(self.packed) else set()
        if len(inputs) < len(self._inputs):  # a narrower last group begins elsewhere
            ends.add(len(self.packed) % OUTPUTS)
        edges = {outputs.start % OUTPUTS, inputs.start % INPUTS, inputs.stop % INPUTS, *ends}
        if edges != {0} or self._way is Way.FLOATS:
            return None
        part = copy(self)
        part.packed = self.packed[outputs.start : outputs.stop]
        part.scales = self.scales[outputs.start : outputs.stop]
        part._inputs = inputs
        return part

    @property
    def tensors(self) -> list[Tensor]:
        """What stays in memory: the weight in an order of its own, and f32[outputs] scales."""
        return [self.packed, self.scales]

    def fields(self, bias: Tensor | None) -> PieceFields | None:
        """See :class:`engine.parallel.shards.Piece`."""
        if self._way is Way.FLOATS:
            return None
        outputs, pitch = self.packed.shape
        return PieceFields(
            weight=self._address,
            bias=None if bias is None else bias.data_ptr(),
            scales=self.scales.data_ptr(),
            block=OUTPUTS,
            outputs=outputs,
            inputs=len(self._inputs),
            pitch=pitch,
            digits=self._digits,
        )

    @property
    def _address(self) -> int:
        return self.packed.data_ptr() + self._inputs.start * OUTPUTS

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, total: Tensor | None = None
    ) -> Tensor:
        """``x[n, inputs]`` -> ``[n, outputs]`` plus ``bias[outputs]`` and ``total[n, outputs]``.

        Raises:
            EngineError: no memory for the rows' digits.
        """
        rows = len(x)
        is_many = rows > MOST_ROWS_OF_FLOATS and self._way is Way.FLOATS
        if is_many or x.dtype not in KINDS:
            product = multiply(x, self.unpacked(), bias)
            return product if total is None else product.add_(total)
        if x.stride(1) != 1:
            x = x.contiguous()
        outputs, pitch = self.packed.shape
        out = torch.empty(rows, outputs, dtype=x.dtype)
        status = self._multiply(
            KINDS[x.dtype],
            self._way,
            self._address,
            self.scales.data_ptr(),
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if total is None else total.data_ptr(),
            out.data_ptr(),
            pitch,
            outputs,
            len(self._inputs),
            rows,
            x.stride(0),
            self._digits,
            torch.get_num_threads(),
        )
        if status:
            raise EngineError("no memory for the digits of a product's rows")
        return out

    def unpacked(self) -> Quantised:
        """What it was made of; of a part, its own."""
        return Quantised(
            values=unpack(self.packed)[:, self._inputs.start : self._inputs.stop],
            scales=self.scales.unsqueeze(0),
            group=len(self._inputs),
            rounds_rows=self._rounds_rows,
        )


def can_pack(weight: Quantised) -> bool:
    """Whether ``weight`` is one to pack, on a machine with the library."""
    values = weight.values
    is_ours = values.dtype == torch.int8 and not values.is_cuda and not weight.is_grouped
    return is_ours and values.shape[1] % INPUTS == 0 and find_int8() is not None


def has_parts() -> bool:
    """Whether this machine multiplies parts of packed weights where they lie."""
    return find_int8() is not None and best_way() is not Way.FLOATS


def pack(values: Tensor) -> Tensor:
    """``values`` i8[outputs, inputs], inputs a multiple of 4, in the packed order."""
    packed = torch.empty(values.shape, dtype=torch.int8)
    for target, source in zip(_groups(packed, packed=True), _groups(values), strict=True):
        target.copy_(source)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """What :func:`pack` was given."""
    values = torch.empty_like(packed)
    for target, source in zip(_groups(values), _groups(packed, packed=True), strict=True):
        target.copy_(source)
    return values


def best_way() -> Way:
    """This processor's, on a machine with the library."""
    library = find_int8()
    assert library is not None, "asked for before"
    return Way(library.gs_int8_way())


def describe() -> str:
    """What multiplies, for people."""
    if find_int8() is None:
        return "by torch"
    found = {Way.FLOATS: "vectors", Way.VECTORS: "VNNI", Way.TILES: "AMX for int8"}[best_way()]
    return f"packed, compiled ({found})"


def _groups(matrix: Tensor, *, packed: bool = False) -> list[Tensor]:
    """``matrix`` as views ``[groups, inputs / 4, outputs of a group, 4]``: all groups that are
    whole, and the narrower one behind them.
    """
    outputs, inputs = matrix.shape
    whole = outputs // OUTPUTS * OUTPUTS
    views = []
    for part, width in ((matrix[:whole], OUTPUTS), (matrix[whole:], outputs - whole)):
        if part.numel() and packed:
            views.append(part.reshape(-1).view(-1, inputs // INPUTS, width, INPUTS))
        elif part.numel():
            views.append(part.reshape(-1, width, inputs // INPUTS, INPUTS).transpose(1, 2))
    return views
