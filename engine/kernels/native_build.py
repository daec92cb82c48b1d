"""Compiles the engine's C++ at first use and loads it; no torch.

A library lands in the user's cache folder, named by a hash of its sources, flags and processor, and
is put there by an atomic rename: ranks and engines that start at once never see half a file.
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
from functools import cache
from pathlib import Path
from typing import Any

NO_COMPILER_VARIABLE = "GEARSHIFT_NO_COMPILER"
COMPILE_TIMEOUT_S = 180.0  # it takes 10, but the machine may be busy
SHARED_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# What tells one processor's instructions from another's in /proc/cpuinfo, on x86-64 and Arm.
PROCESSOR_LINES = ("flags", "Features", "vendor_id", "cpu family", "model", "CPU part")
# By its name, what a function of a library returns and takes.
Functions = Mapping[str, tuple[Any, Sequence[Any]]]


@dataclass(frozen=True, kw_only=True)
class NativeSource:
    """A library to build from ``main``. ``parts`` are the files it includes.

    With ``is_tuned`` it uses every instruction of this processor, and is of use to no other.
    """

    name: str
    main: Path
    parts: tuple[Path, ...] = ()
    flags: tuple[str, ...] = SHARED_FLAGS
    is_tuned: bool = False

    def key(self) -> str:
        """Sixteen hex digits of all that decides what the compiler makes."""
        whole = hashlib.sha256()
        for path in (self.main, *sorted(self.parts)):
            whole.update(path.read_bytes())
        whole.update(" ".join(self.flags).encode() + platform.machine().encode())
        if self.is_tuned:
            whole.update(processor_identity().encode())
        return whole.hexdigest()[:16]


def find_library(source: NativeSource) -> Path | None:
    """The compiled library, building it where needed; None where no compiler is.

    ``GEARSHIFT_NO_COMPILER=1`` says there is none.
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


@cache
def processor_identity() -> str:
    """What this machine's first processor can do: a folder that machines share may hold a library
    for each kind of them.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    first, _, _ = text.partition("\n\n")
    fields = (line.partition(":") for line in first.splitlines())
    return "\n".join(f"{k.strip()}:{v}" for k, _, v in fields if k.strip() in PROCESSOR_LINES)


def _compile(compiler: str, source: NativeSource, path: Path) -> bool:
    """Whether ``path`` now holds the library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError:
        return False
    try:
        command = [compiler, *source.flags, "-o", scratch, str(source.main), "-ldl"]
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False)
        if done.returncode == 0:
            os.replace(scratch, path)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
