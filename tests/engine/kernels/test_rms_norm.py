"""RMSNorm against its formula."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.rms_norm import rms_norm

ROOT = Path(__file__).parents[3]
CASES = [((5, 64), (64,)), ((3, 7, 48), (7, 48)), ((1, 259), (259,)), ((0, 8), (8,))]


@pytest.mark.parametrize(("shape", "weight_shape"), CASES)
def test_the_reference_is_the_formula(
    shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> None:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.rand(weight_shape).double()
    want = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), want)


def test_the_cpu_path_does_not_import_triton() -> None:
    code = (
        "import sys, torch; import engine.rank.runner; "
        "from engine.kernels.rms_norm import rms_norm; "
        "rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5); sys.exit('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0
