"""Compiles the engine's C++ at first use and loads it; no torch.

A library lands in the user's cache folder under a hash of its sources, flags and processor. An
atomic rename puts it there, so that ranks and engines that start at once never see half a file.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.kernels.instructions import instruction_flags, processor_identity

NO_COMPILER_VARIABLE = "GEARSHIFT_NO_COMPILER"
COMPILE_TIMEOUT_S = 180.0  # it takes 10, but the machine may be busy
SHARED_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# One arithmetic for all libraries, so that layers in one call give the bits of single calls.
TUNED_FLAGS = (*SHARED_FLAGS, "-ffp-contract=fast", "-fno-math-errno")
# By its name, what a function of a library returns and takes.
Functions = Mapping[str, tuple[Any, Sequence[Any]]]


@dataclass(frozen=True, kw_only=True)
class NativeSource:
    """A library to build from ``main``. ``parts`` are the files it includes.

    With ``is_tuned`` it uses the instructions of :func:`instruction_flags`, and no other kind of
    processor can use it.
    """

    name: str
    main: Path
    parts: tuple[Path, ...] = ()
    flags: tuple[str, ...] = SHARED_FLAGS
    is_tuned: bool = False

    @property
    def all_flags(self) -> tuple[str, ...]:
        """What the compiler is told.

        Raises:
            EngineError: see :func:`instruction_flags`.
        """
        return (*self.flags, *instruction_flags()) if self.is_tuned else self.flags

    def key(self) -> str:
        """Sixteen hex digits of all that decides what the compiler makes."""
        whole = hashlib.sha256()
        for path in (self.main, *sorted(self.parts)):
            whole.update(path.read_bytes())
        whole.update(" ".join(self.all_flags).encode() + platform.machine().encode())
        if self.is_tuned:
            whole.update(processor_identity().encode())
        return whole.hexdigest()[:16]


def find_library(source: NativeSource) -> Path | None:
    """The compiled library, building it where needed; None where no compiler is.

    ``GEARSHIFT_NO_COMPILER=1`` says there is none.

    Raises:
        EngineError: instructions were named that are not known or not here.
    """
    if os.environ.get(NO_COMPILER_VARIABLE, "") not in ("", "0"):
        return None
    path = cache_folder() / f"{source.name}-{source.key()}.so"
    if path.exists():
        return path
    compiler = find_compiler()
    return path if compiler and _compile(compiler, source, path) else None


def open_library(path: Path | None, functions: Functions) -> ctypes.CDLL | None:
    """The library at ``path``; None where there is no path or the library does not load."""
    if path is None:
        return None
    try:
        return declared(ctypes.CDLL(str(path)), functions)
    except OSError:
        return None


def declared(library: ctypes.CDLL, functions: Functions) -> ctypes.CDLL:
    """``library``, told what its functions take and return."""
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def find_compiler() -> str | None:
    """A C++ compiler on the path: ``$CXX``, then g++, c++, clang++."""
    names = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Per-user folder for what Gearshift builds: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gearshift"


def _compile(compiler: str, source: NativeSource, path: Path) -> bool:
    """Whether ``path`` now holds the library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError:
        return False
    try:
        command = [compiler, *source.all_flags, "-o", scratch, str(source.main), "-ldl"]
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False)
        if done.returncode == 0:
            os.replace(scratch, path)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
