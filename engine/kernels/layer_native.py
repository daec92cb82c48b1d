"""A layer's operations as calls of the compiled library."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from engine.kernels.attention_plan import StepTables
from engine.kernels.cpu_library import ShapeFields, StepFields, describe
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape
from engine.spec.errors import EngineError

# The order of by_dtype in cpu/cpu_native.cpp.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class NativeAttention:
    """See :class:`engine.kernels.layer.StepAttention`.

    Keeps the step's arrays, whose addresses the library gets.
    """

    def __init__(self, kernels: NativeKernels, tables: StepTables) -> None:
        self._kernels = kernels
        self._arrays = (
            tables.query_lens,
            tables.starts,
            tables.totals,
            tables.positions,
            tables.slots(kernels.shape.cache.block_size),
            np.ascontiguousarray(tables.block_tables),
        )
        num_seqs, width = tables.block_tables.shape
        self._fields = StepFields(
            *(array.ctypes.data for array in self._arrays),
            num_seqs=num_seqs,
            table_width=width,
            num_tokens=len(tables.positions),
            num_threads=torch.get_num_threads(),
        )
        self._address = ctypes.addressof(self._fields)
        is_decode = num_seqs == len(tables.positions)
        self._num_new_tokens = num_seqs if is_decode else 0

    @property
    def num_new_tokens(self) -> int:
        """How many sequences have one new token each; 0 where one has more."""
        return self._num_new_tokens

    @property
    def address(self) -> int:
        """Where the step's fields are."""
        return self._address

    def attend(self, qkv: Tensor, *, qk_norm: Tensor | None, cache: LayerCache) -> Tensor:
        kernels = self._kernels
        qkv = qkv.contiguous()
        num_rows = qkv.shape[0]
        out = qkv.new_empty(num_rows, kernels.q_size)
        status = kernels.library.gs_attend(
            kernels.dtype_code,
            kernels.shape_address,
            self._address,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            None if qk_norm is None else qk_norm.data_ptr(),
            qkv.data_ptr(),
            out.data_ptr(),
            num_rows,
        )
        check(status)
        return out


class NativeKernels:
    """See :class:`engine.kernels.layer.LayerKernels`; ``rope`` as
    :func:`engine.models.rope.rope_table` makes it.
    """

    def __init__(self, library: ctypes.CDLL, shape: HeadShape, rope: Tensor) -> None:
        self.library = library
        self.shape = shape
        self.dtype_code = DTYPE_CODES[shape.cache.dtype]
        self.q_size = shape.num_q * shape.cache.head_dim
        self._rope = rope.contiguous()
        self._fields = ShapeFields(
            rope=self._rope.data_ptr(),
            head_dim=shape.cache.head_dim,
            num_q=shape.num_q,
            num_kv=shape.cache.num_kv_heads,
            block_size=shape.cache.block_size,
            eps=shape.rms_eps,
        )
        self.shape_address = ctypes.addressof(self._fields)

    @property
    def name(self) -> str:
        return describe(self.library)

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        assert x.is_contiguous(), f"{tuple(x.shape)} with strides {x.stride()} is not contiguous"
        if delta is not None:
            delta = delta.contiguous()
        out = torch.empty_like(x)
        num_rows, width = x.shape
        status = self.library.gs_add_norm(
            self.dtype_code,
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            self.shape.rms_eps,
            torch.get_num_threads(),
        )
        check(status)
        return out

    def silu_mul(self, gate_up: Tensor, num_blocks: int) -> Tensor:
        gate_up = gate_up.contiguous()
        num_rows, width = gate_up.shape
        out = gate_up.new_empty(num_rows, width // 2)
        status = self.library.gs_silu_mul(
            self.dtype_code,
            gate_up.data_ptr(),
            out.data_ptr(),
            num_rows,
            num_blocks,
            width // 2 // num_blocks,
            torch.get_num_threads(),
        )
        check(status)
        return out

    def padded_rows(self, num_tokens: int) -> int:
        return num_tokens

    def step(self, tables: StepTables, num_rows: int) -> NativeAttention:  # noqa: ARG002 - LayerKernels
        return NativeAttention(self, tables)


def check(status: int) -> None:
    """Raise when a call of the library failed."""
    if status:
        raise EngineError("no memory for the scratch space of a layer's operations")
