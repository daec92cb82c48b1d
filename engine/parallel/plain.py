"""Products with a weight in the checkpoint's own layout, for weights whose rows are looked up
too."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.linear import linear
from engine.parallel.few_rows import KINDS, most_rows
from engine.parallel.few_rows_library import find_few_rows

# What outputs and inputs are multiples of in packed_few.cpp.
OUTPUTS, INPUTS = 16, 32


class Plain:
    """``weight[outputs, inputs]`` and ``bias[outputs]``. If there is a compiler, the engine's C++
    multiplies few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._library = find_few_rows() if _can_be_few(weight) else None
        self._most_rows = 0
        if self._library is not None:
            self._code = KINDS[weight.dtype].code
            self._most_rows = int(self._library.gs_most_plain(self._code))

    def __call__(self, x: Tensor) -> Tensor:
        """``x[n, inputs]`` -> ``[n, outputs]``."""
        rows, inputs = x.shape
        if self._library is None or not 0 < rows <= self._most_rows or x.stride(1) != 1:
            return linear(x, self._weight, self._bias)
        outputs = self._weight.shape[0]
        out = torch.empty(rows, outputs, dtype=x.dtype)
        self._library.gs_multiply_plain(
            self._code,
            self._weight.data_ptr(),
            x.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
            outputs,
            inputs,
            rows,
            x.stride(0),
            torch.get_num_threads(),
        )
        return out


def _can_be_few(weight: Tensor) -> bool:
    is_fit = not (weight.shape[0] % OUTPUTS or weight.shape[1] % INPUTS) and weight.is_contiguous()
    return is_fit and weight.device.type == "cpu" and most_rows(weight.dtype) > 0
