"""Products with quantised weights, and the rounding of what they are multiplied with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.overlap import wait_for_previous

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
LEAST_AMOUNT = 1e-12
MOST_COLUMNS = 128
# Of one row: what a program reads of how many of the weight's rows.
OUTPUTS_AT_ONCE = 2
INPUTS_AT_ONCE = 2048


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _quantise_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    out_ptr,
    scales_ptr,
    num_rows,
    width,
    x_stride,
    group,
    most: tl.constexpr,
    least: tl.constexpr,
    block: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offsets = tl.arange(0, block)
    columns = part * group + offsets
    inside = (offsets < group) & (columns < width)
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), least) / most
    tl.store(scales_ptr + part * num_rows + row, scale)
    scaled = tl.minimum(tl.maximum(x / scale, -most), most)
    tl.store(out_ptr + row * width + columns, scaled.to(out_ptr.dtype.element_ty), mask=inside)


def quantise_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """``x[n, columns]`` in fp8, and f32[groups, n]: each ``group`` columns of a row by the scale
    that makes their largest number fp8's.
    """
    num_rows, width = x.shape
    num_groups = triton.cdiv(width, group)
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(num_rows, width, dtype=FP8, device=x.device)
    scales = torch.empty(num_groups, num_rows, dtype=torch.float32, device=x.device)
    if num_rows:
        block = triton.next_power_of_2(group)
        _quantise_kernel[(num_rows, num_groups)](
            x,
            out,
            scales,
            num_rows,
            width,
            x.stride(0),
            group,
            most=FP8_MOST,
            least=LEAST_AMOUNT,
            block=block,
            num_warps=min(16, max(1, block // 512)),
            **overlap.overlapped(x),
        )
    return out, scales


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_product_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_scales_ptr,
    w_ptr,
    w_scales_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    width,
    x_stride,
    w_stride,
    w_scales_stride,
    group,
    is_grouped: tl.constexpr,
    has_x_scales: tl.constexpr,
    has_bias: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    # Programs beside each other share rows of the weight, the larger of the two.
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    outputs = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    is_row, is_output = rows < num_rows, outputs < num_outputs
    columns = tl.arange(0, block)
    x_rows = x_ptr + rows[:, None].to(tl.int64) * x_stride
    w_rows = w_ptr + outputs[None, :].to(tl.int64) * w_stride
    total = tl.zeros((block_rows, block_outputs), dtype=tl.float32)
    for start in range(0, width, block):
        at = start + columns
        inside = at < width
        x = tl.load(x_rows + at[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_rows + at[:, None], mask=is_output[None, :] & inside[:, None], other=0.0)
        if not has_x_scales:
            w = w.to(x_ptr.dtype.element_ty)
        part = tl.dot(x, w, input_precision="ieee")
        if is_grouped:
            scales = w_scales_ptr + (start // group) * w_scales_stride + outputs
            part *= tl.load(scales, mask=is_output, other=0.0)[None, :]
            if has_x_scales:
                x_scales = x_scales_ptr + (start // group) * num_rows + rows
                part *= tl.load(x_scales, mask=is_row, other=0.0)[:, None]
        total += part
    if not is_grouped:
        total *= tl.load(w_scales_ptr + outputs, mask=is_output, other=0.0)[None, :]
        if has_x_scales:
            total *= tl.load(x_scales_ptr + rows, mask=is_row, other=0.0)[:, None]
    if has_bias:
        total += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[None, :]
    out = out_ptr + rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
    is_mine = is_row[:, None] & is_output[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=is_mine)


def product(
    x: Tensor,
    x_scales: Tensor | None,
    values: Tensor,
    scales: Tensor,
    group: int,
    bias: Tensor | None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``x[n, columns]`` times a quantised weight -> ``[n, rows]`` in ``dtype`` (that of ``x``).

    Args:
        x: plain, or fp8 with ``x_scales`` f32[groups, n].
        values: fp8 or int8 ``[rows, columns]``; rows may be apart.
        scales: f32[groups, rows]; one group, or one for each ``group`` columns (a power of two
            from 32 on).
        bias: ``[rows]``, added before the result is rounded.
    """
    num_rows, width = x.shape
    num_outputs, is_grouped = values.shape[0], scales.shape[0] > 1
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(num_rows, num_outputs, dtype=dtype or x.dtype, device=x.device)
    if num_rows == 0:
        return out
    block_rows = 16 if num_rows <= 16 else 64 if num_rows <= 64 else 128
    block_outputs = 32 if num_rows <= 16 else 64 if num_rows <= 64 else 128
    # Wide numbers take the place of several narrow ones in shared memory.
    block = MOST_COLUMNS // max(1, x.element_size() // 2 * (block_rows // 64 or 1))
    grid = (triton.cdiv(num_rows, block_rows), triton.cdiv(num_outputs, block_outputs))
    _scaled_product_kernel[grid](
        x,
        scales if x_scales is None else x_scales,
        values,
        scales,
        scales if bias is None else bias,
        out,
        num_rows,
        num_outputs,
        width,
        x.stride(0),
        values.stride(0),
        scales.stride(0),
        group,
        is_grouped=is_grouped,
        has_x_scales=x_scales is not None,
        has_bias=bias is not None,
        block_rows=block_rows,
        block_outputs=block_outputs,
        block=min(block, group) if is_grouped else block,
        num_warps=4 if block_rows < 128 else 8,
        num_stages=3,
        **overlap.overlapped(x),
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_row_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    num_outputs,
    width,
    stride,
    scales_stride,
    group,
    is_grouped: tl.constexpr,
    has_bias: tl.constexpr,
    outputs_at_once: tl.constexpr,
    inputs_at_once: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    outputs = tl.program_id(0) * outputs_at_once + tl.arange(0, outputs_at_once)
    is_output = outputs < num_outputs
    inputs = tl.arange(0, inputs_at_once)
    w_rows = w_ptr + outputs.to(tl.int64)[:, None] * stride
    total = tl.zeros([outputs_at_once, inputs_at_once], tl.float32)
    for start in range(0, width, inputs_at_once):
        at = start + inputs
        inside = is_output[:, None] & (at < width)[None, :]
        x = tl.load(x_ptr + at, mask=at < width, other=0.0).to(tl.float32)
        part = tl.load(w_rows + at[None, :], mask=inside, other=0.0).to(tl.float32) * x[None, :]
        if is_grouped:
            places = (at // group)[None, :] * scales_stride + outputs[:, None]
            part *= tl.load(scales_ptr + places, mask=inside, other=0.0)
        total += part
    out = tl.sum(total, axis=1)
    if not is_grouped:
        out *= tl.load(scales_ptr + outputs, mask=is_output, other=0.0)
    if has_bias:
        out += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out_ptr + outputs, out.to(out_ptr.dtype.element_ty), mask=is_output)


def one_row(x: Tensor, values: Tensor, scales: Tensor, group: int, bias: Tensor | None) -> Tensor:
    """``x[1, columns]``, which is not rounded, times a quantised weight; see :func:`product`.

    Reading the weight is all that takes time here.
    """
    num_outputs, width = values.shape
    out = x.new_empty(1, num_outputs)
    _scaled_row_kernel[(triton.cdiv(num_outputs, OUTPUTS_AT_ONCE),)](
        x if x.stride(1) == 1 else x.contiguous(),
        values,
        scales,
        scales if bias is None else bias,
        out,
        num_outputs,
        width,
        values.stride(0),
        scales.stride(0),
        group,
        is_grouped=scales.shape[0] > 1,
        has_bias=bias is not None,
        outputs_at_once=OUTPUTS_AT_ONCE,
        inputs_at_once=INPUTS_AT_ONCE,
        num_warps=4,
        **overlap.overlapped(x),
    )
    return out
