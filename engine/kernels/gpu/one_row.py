"""The product of one row with a large weight, where reading the weight is all that takes time.

cuBLAS reads the largest matrix of an 8B model's layer at 93 % of the copy bandwidth, but the
smallest at 56 %; this one at 96 and 72 % (one H200).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.overlap import wait_for_previous

OUTPUTS_AT_ONCE = 2
INPUTS_AT_ONCE = 1024
NUM_WARPS = 4


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _one_row_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_outputs,
    num_inputs,
    stride,
    has_bias: tl.constexpr,
    outputs_at_once: tl.constexpr,
    inputs_at_once: tl.constexpr,
    is_even: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    outputs = tl.program_id(0) * outputs_at_once + tl.arange(0, outputs_at_once)
    is_output = outputs < num_outputs
    inputs = tl.arange(0, inputs_at_once)
    weights = weight_ptr + outputs.to(tl.int64)[:, None] * stride + inputs[None, :]
    # Nobody writes weights, so reading the first ones can begin before the row is there.
    is_input = inputs < num_inputs
    w = tl.load(weights, mask=is_output[:, None] & is_input[None, :], other=0.0)
    wait_for_previous(is_overlapped)
    x = tl.load(x_ptr + inputs, mask=is_input, other=0.0)
    total = w.to(tl.float32) * x.to(tl.float32)[None, :]
    for start in range(inputs_at_once, num_inputs, inputs_at_once):
        if is_even:
            w = tl.load(weights + start, mask=is_output[:, None], other=0.0)
            x = tl.load(x_ptr + start + inputs)
        else:
            is_input = start + inputs < num_inputs
            w = tl.load(weights + start, mask=is_output[:, None] & is_input[None, :], other=0.0)
            x = tl.load(x_ptr + start + inputs, mask=is_input, other=0.0)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
    out = tl.sum(total, axis=1)
    if has_bias:
        out += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out_ptr + outputs, out.to(out_ptr.dtype.element_ty), mask=is_output)


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x[1, inputs] @ weight[outputs, inputs].T + bias[outputs]``, summed in float32.

    ``weight`` may be columns of a wider one: only its rows have to be adjacent numbers.
    """
    num_outputs, num_inputs = weight.shape
    assert weight.stride(1) == 1, f"rows of strides {weight.stride()} are not adjacent numbers"
    out = x.new_empty(1, num_outputs)
    _one_row_kernel[(triton.cdiv(num_outputs, OUTPUTS_AT_ONCE),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        num_outputs,
        num_inputs,
        weight.stride(0),
        has_bias=bias is not None,
        outputs_at_once=OUTPUTS_AT_ONCE,
        inputs_at_once=INPUTS_AT_ONCE,
        is_even=num_inputs % INPUTS_AT_ONCE == 0,
        num_warps=NUM_WARPS,
        **overlap.overlapped(x),
    )
    return out
