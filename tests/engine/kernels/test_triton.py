"""The Triton kernels against torch's operations: interpreted here, compiled where a GPU is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpreted(count: int) -> None:
    """Compare ``count`` cases of each kernel in a process that chose the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.triton_cases", f"--count={count}"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{6 * count} cases on cpu: all agree" in done.stdout


def test_the_kernels_agree_with_torch_in_the_interpreter() -> None:
    interpreted(3)


@pytest.mark.slow
def test_the_kernels_agree_with_torch_in_hundreds_of_interpreted_cases() -> None:
    interpreted(200)


@pytest.mark.gpu
def test_the_kernels_agree_with_torch_on_the_device() -> None:
    from tests.engine.kernels.triton_cases import compare

    assert len(compare(torch.device("cuda"), count=100, seed=2)) == 600


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability: int) -> None:
    """Down to machine code, which the interpreter never sees."""
    module = "tests.engine.kernels.triton_cases"
    done = subprocess.run(
        [sys.executable, "-m", module, f"--compile={capability}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
