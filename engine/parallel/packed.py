"""Weights laid out once for oneDNN's products on a CPU, where torch has the operations for it.

They are private to torch, so this file alone names them; without them, in a format oneDNN does not
multiply, or where a layout would need padding, a weight stays as it is and ``F.linear`` reads it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

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


def pack(weight: Tensor) -> Tensor:
    """A copy of ``weight[out, in]`` in a layout that oneDNN chooses; opaque."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), EXPECTED_ROWS)
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x[n, in]`` -> ``[n, out]``, as ``F.linear`` with what was packed."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


def multiply_add(x: Tensor, packed: Tensor, total: Tensor) -> Tensor:
    """``total[n, out]`` plus ``x[n, in]`` times what was packed."""
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, total, packed, None, "add")
    return added


def place_and_bytes(tensor: Tensor) -> tuple[int, int]:
    """Where the storage of ``tensor``, packed or not, begins, and its bytes."""
    if tensor.is_mkldnn:
        operations = torch.ops.mkldnn
        return int(operations.data_ptr(tensor)), int(operations._nbytes(tensor))
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
