"""RMSNorm: the reference against its formula, and the Triton kernel against the reference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.rms_norm import rms_norm, rms_norm_reference

ROOT = Path(__file__).parents[3]
CASES = [((5, 64), (64,)), ((3, 7, 48), (7, 48)), ((1, 259), (259,)), ((0, 8), (8,))]
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def compare_interpreted() -> None:
    """Every case and dtype through Triton's interpreter; run in a process that turned it on."""
    from engine.kernels.rms_norm_triton import rms_norm_triton

    generator = torch.Generator().manual_seed(1)
    for dtype, tolerance in TOLERANCE.items():
        for shape, weight_shape in CASES:
            x = (4 * torch.randn(shape, generator=generator)).to(dtype)
            weight = (torch.rand(weight_shape, generator=generator) + 0.5).to(dtype)
            got = rms_norm_triton(x, weight, 1e-5)
            want = rms_norm_reference(x, weight, 1e-5)
            assert got.dtype is dtype
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        strided = torch.randn(4, 10, 16, generator=generator).to(dtype)[:, 2:5]
        weight = torch.ones(3, 16, dtype=dtype)
        got = rms_norm_triton(strided, weight, 1e-5)
        want = rms_norm_reference(strided, weight, 1e-5)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernel_agrees_with_the_reference_in_the_interpreter() -> None:
    code = "import tests.engine.kernels.test_rms_norm as t; t.compare_interpreted()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("shape", "weight_shape"), CASES)
def test_the_reference_is_the_formula(
    shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> None:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.rand(weight_shape).double()
    want = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), want)


def test_the_cpu_path_does_not_import_triton() -> None:
    code = (
        "import sys, torch; from engine.kernels.rms_norm import rms_norm; "
        "import engine.rank.runner; "
        "rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5); sys.exit('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.gpu
def test_the_kernel_agrees_with_the_reference_on_the_device() -> None:
    for dtype, tolerance in TOLERANCE.items():
        x = torch.randn(33, 4096, device="cuda").to(dtype)
        weight = torch.rand(4096, device="cuda").to(dtype)
        torch.testing.assert_close(
            rms_norm(x, weight, 1e-5),
            rms_norm_reference(x, weight, 1e-5),
            rtol=tolerance,
            atol=tolerance,
        )
