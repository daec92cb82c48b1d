"""RMSNorm as one Triton kernel: a program per row, one read and one write of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    out_ptr,
    width,
    num_weights,
    eps: tl.constexpr,
    block: tl.constexpr,
    accumulate: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    x = tl.load(x_ptr + row * width + columns, mask=inside, other=0.0).to(accumulate)
    weight_row = weight_ptr + (row % num_weights) * width
    weight = tl.load(weight_row + columns, mask=inside, other=0.0).to(accumulate)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + eps)
    out = (x * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * width + columns, out, mask=inside)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See :func:`engine.kernels.rms_norm.rms_norm`; runs on CUDA, or anywhere interpreted."""
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    if num_rows := x.numel() // width:
        _rms_norm_kernel[(num_rows,)](
            x,
            weight,
            out,
            width,
            weight.numel() // width,
            eps=eps,
            block=triton.next_power_of_2(width),
            accumulate=tl.float64 if x.dtype == torch.float64 else tl.float32,
        )
    return out
