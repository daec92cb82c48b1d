"""The product of rows with a weight, by whatever is fastest for their number and device."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x[n, inputs] @ weight[outputs, inputs].T + bias[outputs]``.

    ``weight`` may be columns of a wider one.
    """
    if HAS_TRITON and x.is_cuda and x.shape[0] == 1 and x.dtype in (torch.bfloat16, torch.float16):
        from engine.kernels.gpu.one_row import one_row

        return one_row(x, weight, bias)
    return F.linear(x, weight, bias)
