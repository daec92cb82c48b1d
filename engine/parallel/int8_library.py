"""The library behind :mod:`engine.parallel.int8`: where it comes from, and its functions.

No torch: the process that starts the ranks builds it, and counts the bytes they will hold.
"""

from __future__ import annotations

import ctypes
from functools import cache

from engine.kernels import native_build
from engine.parallel.few_rows_library import packed_source
from engine.spec.model import DType, ModelConfig

SOURCE = packed_source("packed_int8")


@cache
def find_int8() -> ctypes.CDLL | None:
    """The library, built where needed; None where it cannot be."""
    pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    functions: native_build.Functions = {
        "gs_int8_way": (i32, []),
        "gs_multiply_int8": (i32, [i32, i32, *[pointer] * 6, *[i64] * 5, i32, i32]),
    }
    return native_build.open_library(native_build.find_library(SOURCE), functions)


def as_held_on_cpu(model: ModelConfig, dtype: DType) -> ModelConfig:
    """``model`` as ranks on a CPU that compute in ``dtype`` hold it: int8 layers stay int8 where
    the library is, and wherever their products round rows. Where ``--quantization`` asked for them
    the head is int8 too, kept or rounded, so that answers do not depend on the compiler.
    """
    found = model.quantisation
    if found is None or not found.format.is_int8:
        return model
    is_compiled = dtype is not DType.FLOAT64 and find_int8() is not None
    is_kept = found.format.rounds_rows or is_compiled
    return model.holding(is_kept=is_kept, has_head=found.at_load)
