"""Where the compiled shared-memory collectives come from; no torch."""

from __future__ import annotations

import platform
from pathlib import Path

from engine.kernels import native_build

SOURCE = native_build.NativeSource(
    name="shm_collectives", main=Path(__file__).with_name("shm_collectives.cpp")
)


def find_library() -> Path | None:
    """The compiled collectives; see :func:`engine.kernels.native_build.find_library`."""
    return native_build.find_library(SOURCE)


def can_use_python_version() -> bool:
    """Whether plain stores become visible in order, as the Python version needs.

    Python has no memory fence; x86-64 keeps the order of stores by itself, other processors
    need the compiled version (or gloo).
    """
    return platform.machine().lower() in ("x86_64", "amd64")
