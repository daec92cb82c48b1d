"""What a layer does row by row: RMSNorm of a sum, and the gate of the feed-forward part."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.overlap import wait_for_previous

SILU_BLOCK = 1024


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    width,
    eps,
    has_delta: tl.constexpr,
    block: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, block)
    inside = columns < width
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0)
    if has_delta:
        delta = tl.load(delta_ptr + row + columns, mask=inside, other=0.0)
        # Rounded as the sum that the next layer reads is.
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row + columns, x, mask=inside)
    wide = x.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    out = (wide * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row + columns, out, mask=inside)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """See :meth:`engine.kernels.layer.LayerKernels.add_norm`; a program per row, which reads and
    writes each number once.
    """
    assert x.is_contiguous(), f"{tuple(x.shape)} with strides {x.stride()} is not contiguous"
    delta = None if delta is None else delta.contiguous()
    out = torch.empty_like(x)
    num_rows, width = x.shape
    if num_rows:
        block = triton.next_power_of_2(width)
        _add_norm_kernel[(num_rows,)](
            x,
            x if delta is None else delta,
            weight,
            out,
            width,
            eps,
            has_delta=delta is not None,
            block=block,
            num_warps=min(16, max(1, block // 512)),
            **overlap.overlapped(x),
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul_kernel(  # type: ignore[no-untyped-def]
    gate_up_ptr, out_ptr, width, share, block: tl.constexpr, is_overlapped: tl.constexpr
):
    wait_for_previous(is_overlapped)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    # Column c of the output comes from block c // share, whose gates stand before its ups.
    gates = gate_up_ptr + row * 2 * width + columns + columns // share * share
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + share, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    out = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor, num_blocks: int) -> Tensor:
    """See :func:`engine.kernels.silu_mul.silu_mul`."""
    gate_up = gate_up.contiguous()
    num_rows, both = gate_up.shape
    width = both // 2
    out = gate_up.new_empty(num_rows, width)
    if num_rows:
        _silu_mul_kernel[(num_rows, triton.cdiv(width, SILU_BLOCK))](
            gate_up,
            out,
            width,
            width // num_blocks,
            block=SILU_BLOCK,
            **overlap.overlapped(gate_up),
        )
    return out
