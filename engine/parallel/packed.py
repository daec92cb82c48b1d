"""Weights laid out once for oneDNN's products on a CPU, where torch has the operations for it.

These operations are private to torch, so only this file names them. Without them, in a format that
oneDNN does not multiply, or if a layout would need padding, a weight stays as it is and
``F.linear`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from engine.parallel.few_rows import BLOCKS, KINDS, FewRows, PieceFields, can_be_few
from engine.parallel.few_rows_library import find_few_rows

# Layouts differ little between row counts; this one reads decode's small batches fast.
EXPECTED_ROWS = 32
OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight", "_nbytes", "data_ptr")


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch packs weights in ``dtype``, found by trying."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS):
        return False
    weight, x = torch.eye(64, dtype=dtype), torch.ones(1, 64, dtype=dtype)
    try:
        return torch.equal(multiply(x, pack(weight)), x)
    except (RuntimeError, TypeError):
        return False


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight ``[outputs, inputs]`` in a layout that oneDNN chose; ``tensor`` is opaque. ``few``
    multiplies with few rows faster, where it can.
    """

    tensor: Tensor
    few: FewRows | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.tensor]

    def fields(self, bias: Tensor | None) -> PieceFields | None:
        """See :class:`engine.parallel.shards.Piece`."""
        return None if self.few is None else self.few.fields(bias)

    def part(self, outputs: range, inputs: range) -> PackedPart | None:
        """Only these outputs and inputs; None if they cannot be multiplied in place."""
        few = None if self.few is None else self.few.part(outputs, inputs)
        return None if few is None else PackedPart(whole=self, few=few, num_outputs=len(outputs))

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, total: Tensor | None = None
    ) -> Tensor:
        """See :func:`multiply`."""
        return multiply(x, self, bias, total=total)


@dataclass(frozen=True, kw_only=True)
class PackedPart:
    """Some outputs and inputs of ``whole``, multiplied in place."""

    whole: Packed
    few: FewRows
    num_outputs: int

    @property
    def tensors(self) -> list[Tensor]:
        return self.whole.tensors

    def fields(self, bias: Tensor | None) -> PieceFields | None:
        """See :class:`engine.parallel.shards.Piece`."""
        return self.few.fields(bias)

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, total: Tensor | None = None
    ) -> Tensor:
        """``x[n, inputs]`` -> ``[n, outputs]``, plus ``bias[outputs]`` or ``total[n, outputs]``."""
        if not len(x):
            return x.new_empty(0, self.num_outputs)
        return self.few(x if x.stride(1) == 1 else x.contiguous(), bias, total)


def pack(weight: Tensor) -> Packed:
    """A packed copy of ``weight[outputs, inputs]``."""
    operation = torch.ops.mkldnn._reorder_linear_weight
    packed = Packed(tensor=operation(weight.contiguous(), EXPECTED_ROWS))
    outputs, inputs = weight.shape
    if not can_be_few(weight.dtype, outputs, inputs):
        return packed
    return replace(packed, few=_find_few(packed, weight.dtype, outputs, inputs))


def multiply(
    x: Tensor, packed: Packed, bias: Tensor | None = None, *, total: Tensor | None = None
) -> Tensor:
    """``x[n, inputs]`` -> ``[n, outputs]``, as ``F.linear`` with what was packed.

    ``total[n, outputs]`` is added to the product in place of the bias.
    """
    if packed.few is not None and packed.few.can_take(x):
        return packed.few(x, bias, total)
    operation = torch.ops.mkldnn._linear_pointwise
    product: Tensor
    if total is None:
        product = operation(x, packed.tensor, bias, "none", [], "")
    else:
        product = operation.binary(x, total, packed.tensor, None, "add")
    return product


def place_and_bytes(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of the storage of ``tensor``, packed or not."""
    if tensor.is_mkldnn:
        operations = torch.ops.mkldnn
        return int(operations.data_ptr(tensor)), int(operations._nbytes(tensor))
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _find_few(packed: Packed, dtype: torch.dtype, outputs: int, inputs: int) -> FewRows | None:
    """The compiled product, with the block of outputs by which it answers as oneDNN does."""
    library = find_few_rows()
    assert library is not None, "asked for before"
    address, num_bytes = place_and_bytes(packed.tensor)
    if num_bytes != outputs * inputs * dtype.itemsize:
        return None  # padded, in a way that is not known
    x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted, kind = multiply(x, packed).float(), KINDS[dtype]
    for block in BLOCKS:
        if outputs % block == 0 and block % kind.outputs == 0:
            few = FewRows(
                library,
                kind,
                address=address,
                block=block,
                outputs=outputs,
                inputs=inputs,
                pitch=inputs,
            )
            found = few(x, None, None).float()
            if torch.allclose(found, wanted, rtol=0.02, atol=1e-5 * float(wanted.abs().max())):
                return few
    return None
