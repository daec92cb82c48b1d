"""Compiles the shared-memory collectives at first use; no torch.

The library lands in the user's cache folder, named by a hash of source and flags, and is put
there by an atomic rename: ranks and engines that start at once never see half a file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shm_collectives.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
NO_COMPILER_VARIABLE = "GEARSHIFT_NO_COMPILER"
COMPILE_TIMEOUT_S = 60.0


def find_library() -> Path | None:
    """The compiled library, building it where needed; None where no compiler is.

    ``GEARSHIFT_NO_COMPILER=1`` says there is none.
    """
    if os.environ.get(NO_COMPILER_VARIABLE, "") not in ("", "0"):
        return None
    path = cache_folder() / f"shm_collectives-{_source_key()}.so"
    if path.exists():
        return path
    compiler = find_compiler()
    return path if compiler and _compile(compiler, path) else None


def can_use_python_version() -> bool:
    """Whether plain stores become visible in order, as the Python version needs.

    Python has no memory fence; x86-64 keeps the order of stores by itself, other processors
    need the compiled version (or gloo).
    """
    return platform.machine().lower() in ("x86_64", "amd64")


def find_compiler() -> str | None:
    """A C++ compiler on the path: ``$CXX``, then g++, c++, clang++."""
    names = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Per-user folder for what Gearshift builds: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gearshift"


def _source_key() -> str:
    text = SOURCE.read_bytes() + " ".join(FLAGS).encode() + platform.machine().encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> bool:
    """Whether ``path`` now holds the library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError:
        return False
    try:
        command = [compiler, *FLAGS, "-o", scratch, str(SOURCE)]
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False)
        if done.returncode == 0:
            os.replace(scratch, path)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
