"""`gearshift model create`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_a_checkpoint_as_far_as_the_umask_lets_them(
    tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        done = CliRunner().invoke(create_app(), ["model", "create", str(tmp_path / "m")])
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.output
    files = list((tmp_path / "m").iterdir())
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}
