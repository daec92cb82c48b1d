"""Every set of instructions that this processor has, and those of Arm where an emulator is, compute
the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.kernels import instructions
from engine.kernels.cpu_library import SOURCE, describe, find_cpu_library
from engine.kernels.instructions import (
    INSTRUCTION_SETS,
    INSTRUCTIONS_VARIABLE,
    instruction_flags,
    list_here,
)
from engine.kernels.native_build import find_compiler
from engine.spec.errors import EngineError

ROOT = Path(__file__).parents[3]
# Each operation beside plain loops, without torch.
CHECK = (
    "tests/engine/kernels/kernel_check.cpp",
    "engine/kernels/cpu/cpu_native.cpp",
    "engine/parallel/packed_few.cpp",
    "engine/parallel/packed_int8.cpp",
)
# And with torch: what the suite asks of the compiled operations, one by one and in a model.
SUITE = (
    "tests/engine/kernels/test_layer.py",
    "tests/engine/parallel/test_int8.py",
    "tests/engine/parallel/test_products.py",
    "tests/engine/models/test_native_layers.py",
    "tests/engine/models/test_quantised.py",
)
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here")


def test_instructions_that_are_not_known_or_not_here_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(INSTRUCTIONS_VARIABLE, "avx3")
    with pytest.raises(EngineError, match="avx3: instructions are sse, avx2, avx512"):
        instruction_flags()
    monkeypatch.setattr(instructions, "processor_identity", lambda: "flags: fpu")
    monkeypatch.setenv(INSTRUCTIONS_VARIABLE, "avx2")
    with pytest.raises(EngineError, match="this processor has none by name"):
        instruction_flags()
    monkeypatch.delenv(INSTRUCTIONS_VARIABLE)
    assert instruction_flags() == ("-march=native",)


@needs_compiler
@pytest.mark.skipif("avx2" not in list_here(), reason="this processor has no AVX2")
def test_named_instructions_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SOURCE.key()
    monkeypatch.setenv(INSTRUCTIONS_VARIABLE, "avx2")
    assert SOURCE.key() != whole
    assert replace(SOURCE, is_tuned=False).key() != SOURCE.key()
    library = find_cpu_library()
    assert library is not None
    assert "256-bit vectors" in describe(library)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", list_here())
def test_every_set_computes_as_plain_loops(name: str, tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None
    done = _run([str(_built(compiler, name, tmp_path))])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(ARM_COMPILER) is None or shutil.which(ARM_EMULATOR) is None,
    reason=f"no {ARM_COMPILER} or no {ARM_EMULATOR}",
)
def test_arm_computes_as_plain_loops(tmp_path: Path) -> None:
    program = _built(ARM_COMPILER, "neon", tmp_path)
    done = _run([ARM_EMULATOR, "-L", ARM_LIBRARIES, str(program)])
    assert done.returncode == 0, done.stdout
    assert "128-bit vectors" in done.stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", list_here())
def test_the_suite_holds_for_every_set(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE]
    done = _run(command, {INSTRUCTIONS_VARIABLE: name})
    assert done.returncode == 0, done.stdout[-3000:]


def _built(compiler: str, name: str, folder: Path) -> Path:
    program = folder / "check"
    flags = ("-O2", "-std=c++17", *SOURCE.flags[-2:], *INSTRUCTION_SETS[name].flags, "-fopenmp")
    done = _run([compiler, *flags, "-o", str(program), *CHECK, "-ldl"])
    assert done.returncode == 0, done.stdout
    return program


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
