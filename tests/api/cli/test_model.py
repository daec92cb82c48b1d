"""`gearshift model create`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from api.cli.main import create_app


def test_model_create_writes_a_folder_and_says_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    result = CliRunner().invoke(create_app(), ["model", "create", str(folder), "--json"])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["num_params"] == 205_760
    assert (folder / "config.json").exists()


def test_model_create_refuses_an_unknown_preset_with_one_line(tmp_path: Path) -> None:
    arguments = ["model", "create", str(tmp_path), "--preset", "huge"]
    result = CliRunner().invoke(create_app(), arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "known: tiny, small" in result.stderr
