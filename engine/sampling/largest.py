"""The largest logit of each row on a CPU: one pass of the engine's C++ if there is a compiler."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from engine.kernels.cpu_library import find_cpu_library
from engine.kernels.layer_native import DTYPE_CODES, check
from engine.sampling.rules import have_finite, largest_ids
from engine.spec.steps import NO_TOKEN


class Largest:
    """Greedy tokens by the rule of :mod:`engine.sampling.rules`."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = find_cpu_library()

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits[R, V]`` -> ids i8[R]; ``NO_TOKEN`` for a row without a finite value."""
        if self._library is None or logits.dtype not in DTYPE_CODES or logits.stride(1) != 1:
            ids = largest_ids(logits)
            return ids.masked_fill_(~have_finite(logits, ids), NO_TOKEN)
        ids = torch.empty(len(logits), dtype=torch.int64)
        status = self._library.gs_largest(
            DTYPE_CODES[logits.dtype],
            logits.data_ptr(),
            ids.data_ptr(),
            *logits.shape,
            logits.stride(0),
            torch.get_num_threads(),
        )
        check(status)
        return ids
