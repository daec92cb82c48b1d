"""Compiled products of few rows with packed weights; see ``packed_few.cpp``.

oneDNN's layout is undocumented, so nothing is taken for granted: a shape is multiplied here only
after its answer was found equal to oneDNN's.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.parallel.few_rows_library import find_few_rows

# Blocks of outputs that oneDNN packs together.
BLOCKS = (64, 32)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What packed_few.cpp needs to know of one format: its ``code`` there, the bytes of a number,
    and what outputs and inputs have to be multiples of.
    """

    code: int
    num_bytes: int
    outputs: int
    inputs: int


# Float32 needs AVX-512, bfloat16 its products of bfloat16 or AMX.
KINDS = {
    torch.float32: Kind(code=0, num_bytes=4, outputs=64, inputs=1),
    torch.bfloat16: Kind(code=1, num_bytes=2, outputs=32, inputs=32),
}


class PieceFields(ctypes.Structure):
    """``Piece`` of few_stage.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("block", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
        ("digits", ctypes.c_int64),
    )


class FewRows:
    """Products with one packed weight ``[outputs, inputs]`` at ``address``, in blocks of ``block``
    outputs; or with a part of one, whose blocks have ``pitch`` inputs.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        kind: Kind,
        *,
        address: int,
        block: int,
        outputs: int,
        inputs: int,
        pitch: int,
    ) -> None:
        self._library, self._kind = library, kind
        self._most_rows = library.gs_most_few(kind.code)
        self._multiply = library.gs_multiply_few
        self._address, self._block = address, block
        self._outputs, self._inputs, self._pitch = outputs, inputs, pitch

    def part(self, outputs: range, inputs: range) -> FewRows | None:
        """The product with only these outputs and inputs, for any number of rows. None if the
        library cannot do that, or if they begin or end within what is packed together.
        """
        edges = {inputs.start % self._kind.inputs, inputs.stop % self._kind.inputs}
        edges |= {outputs.start % self._block, outputs.stop % self._block}
        if edges != {0} or not has_parts(self._kind):
            return None
        skipped = outputs.start * self._pitch + inputs.start * self._block
        return FewRows(
            self._library,
            self._kind,
            address=self._address + skipped * self._kind.num_bytes,
            block=self._block,
            outputs=len(outputs),
            inputs=len(inputs),
            pitch=self._pitch,
        )

    def fields(self, bias: Tensor | None) -> PieceFields:
        """What the library is told of it, with ``bias[outputs]``."""
        return PieceFields(
            weight=self._address,
            bias=None if bias is None else bias.data_ptr(),
            block=self._block,
            outputs=self._outputs,
            inputs=self._inputs,
            pitch=self._pitch,
        )

    def can_take(self, x: Tensor) -> bool:
        """Whether ``x[n, inputs]`` has few rows, whose elements lie side by side."""
        return 0 < x.shape[0] <= self._most_rows and x.stride(1) == 1

    def __call__(self, x: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
        """``x[n, inputs]`` -> ``[n, outputs]`` plus ``bias[outputs]`` and ``total[n, outputs]``.

        Only after :meth:`can_take` said yes; a part takes any ``x`` that has rows.
        """
        out = torch.empty(x.shape[0], self._outputs, dtype=x.dtype)
        self._multiply(
            self._kind.code,
            self._address,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if total is None else total.data_ptr(),
            out.data_ptr(),
            self._block,
            self._pitch,
            self._outputs,
            self._inputs,
            x.shape[0],
            x.stride(0),
            torch.get_num_threads(),
        )
        return out


def has_parts(kind: Kind) -> bool:
    """Whether this machine multiplies parts of packed weights where they lie."""
    library = find_few_rows()
    return library is not None and bool(library.gs_has_parts(kind.code))


def can_be_few(dtype: torch.dtype, outputs: int = 0, inputs: int = 0) -> bool:
    """Whether packed weights of this format and shape may be multiplied here."""
    kind = KINDS.get(dtype)
    if kind is None or outputs % kind.outputs or inputs % kind.inputs:
        return False
    return most_rows(dtype) > 0


def most_rows(dtype: torch.dtype, *, is_int8: bool = False) -> int:
    """The most rows that this machine multiplies here, with ``is_int8`` in a step whose layers have
    int8 weights; 0 without a compiler or the instructions.
    """
    library = find_few_rows()
    if library is None or dtype not in KINDS:
        return 0
    ask = library.gs_most_int8 if is_int8 else library.gs_most_few
    found: int = ask(KINDS[dtype].code)
    return found
