"""The compiled operations of a layer on a CPU: where the library comes from, and its functions."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

from engine.kernels.native_build import (
    TUNED_FLAGS,
    Functions,
    NativeSource,
    find_library,
    open_library,
)

FOLDER = Path(__file__).with_name("cpu")
SOURCE = NativeSource(
    name="cpu_native",
    main=FOLDER / "cpu_native.cpp",
    parts=tuple(FOLDER.glob("*.h")),
    flags=TUNED_FLAGS,
    is_tuned=True,
)


class ShapeFields(ctypes.Structure):
    """``Shape`` of cpu/paged.h."""

    _fields_ = (
        ("rope", ctypes.c_void_p),
        ("head_dim", ctypes.c_int64),
        ("num_q", ctypes.c_int64),
        ("num_kv", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("eps", ctypes.c_double),
    )


class StepFields(ctypes.Structure):
    """``Step`` of cpu/paged.h, but for the rows of a call."""

    _fields_ = (
        ("query_lens", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("num_seqs", ctypes.c_int64),
        ("table_width", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


def find_cpu_library() -> ctypes.CDLL | None:
    """The library, built where needed; None where it cannot be."""
    return load_library(find_library(SOURCE))


def build_cpu_library() -> None:
    """Compile it now, so that ranks which start together find it."""
    find_library(SOURCE)


@lru_cache(maxsize=4)
def load_library(path: Path | None) -> ctypes.CDLL | None:
    """The library at ``path`` with its functions declared; None where it does not load."""
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    functions: Functions = {
        "gs_features": (i32, []),
        "gs_add_norm": (i32, [i32, *[pointer] * 4, i64, i64, ctypes.c_double, i32]),
        "gs_silu_mul": (i32, [i32, pointer, pointer, *[i64] * 3, i32]),
        "gs_largest": (i32, [i32, pointer, pointer, *[i64] * 3, i32]),
        "gs_attend": (i32, [i32, *[pointer] * 7, i64]),
    }
    return open_library(path, functions)


def describe(library: ctypes.CDLL) -> str:
    """What the library uses of this machine, for people."""
    features = library.gs_features()
    words = [f"{(features >> 2) * 8}-bit vectors"]
    if features & 2:
        words.append("AMX for bfloat16")
    if not features & 1:
        words.append("one thread: torch's OpenMP was not found")
    return f"compiled ({', '.join(words)})"
