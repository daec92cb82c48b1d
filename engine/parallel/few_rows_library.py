"""The library behind :mod:`engine.parallel.few_rows`: where it comes from, and its functions.

No torch: the process that starts the ranks builds it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from engine.kernels import native_build


def packed_source(name: str) -> native_build.NativeSource:
    """The library of ``NAME.cpp`` beside this file; those of packed weights share their headers."""
    folder = Path(__file__).parent
    return native_build.NativeSource(
        name=name,
        main=folder / f"{name}.cpp",
        parts=(
            *folder.glob("few_*.h"),
            *folder.glob("int8_*.h"),
            *(folder.parent / "kernels" / "cpu").glob("*.h"),
        ),
        flags=native_build.TUNED_FLAGS,
        is_tuned=True,
    )


SOURCE = packed_source("packed_few")


def build_few_rows() -> None:
    """Compile it now, so that ranks which start together find it."""
    native_build.find_library(SOURCE)


@cache
def find_few_rows() -> ctypes.CDLL | None:
    """The library, built where needed; None where it cannot be."""
    pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    functions: native_build.Functions = {
        "gs_most_few": (i32, [i32]),
        "gs_has_parts": (i32, [i32]),
        "gs_multiply_few": (None, [i32, *[pointer] * 5, *[i64] * 6, i32]),
        "gs_most_int8": (i32, [i32]),
        "gs_most_plain": (i32, [i32]),
        "gs_multiply_plain": (None, [i32, *[pointer] * 4, *[i64] * 4, i32]),
        "gs_run_layers": (i32, [i32, pointer, pointer, pointer, i64, pointer]),
    }
    return native_build.open_library(native_build.find_library(SOURCE), functions)
