"""A tiny checkpoint and the command line in process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from engine.models.create import create_model

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_model(folder, preset="tiny", seed=1)
    return folder


@pytest.fixture
def run() -> Run:
    """Run `gearshift` with these words; numbers and paths become text."""
    app = create_app()
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
