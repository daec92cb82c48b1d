"""A tiny checkpoint and the command line in process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from engine.models.create import create_model

Run = Callable[..., Result]
# Of processes in which sets come in another order than in this one.
OTHER_HASH_SEED = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_model(folder, preset="tiny", seed=1)
    return folder


COMPARE = ("compare", "--model", "llama-3.1-8b", "--hardware", "2xh100", "--max-model-len", "4096",
           "--workload", "poisson:rate=20,input=512,output=16,requests=24", "--jobs", "1",
           "--draws", "2")  # fmt: skip


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of a comparison, and what was printed beside it."""
    out = tmp_path_factory.mktemp("compared") / "compare.json"
    words = [*COMPARE, "--sla", "p99_ttft_ms<=2000", "--out", str(out)]
    done = CliRunner().invoke(create_app(), words)
    assert done.exit_code == 0, done.output
    return out, done.stdout


@pytest.fixture
def run() -> Run:
    """Run `gearshift` with these words; numbers and paths become text."""
    app = create_app()
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
