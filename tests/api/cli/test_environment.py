"""Variables with our prefix that nothing reads are named at the start of every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.cli.environment import known_variables
from tests.api.cli.conftest import Run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("GEARSHIFT_PROT", "did you mean GEARSHIFT_PORT?"),
        ("GEARSHIFT_DATADIR", "did you mean GEARSHIFT_DATA_DIR?"),
        ("GEARSHIFT_ENGINE_KEYS", "did you mean GEARSHIFT_ENGINE_KEY?"),
        ("gearshift_log_levl", "did you mean GEARSHIFT_LOG_LEVEL?"),
        ("GEARSHIFT_XYZ", "'gearshift serve --help' lists them"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_right_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way_out: str
) -> None:
    monkeypatch.setenv(name, "1")
    done = run("model", "create", tmp_path / "m")
    assert done.exit_code == 0
    expected = f"warning: {name} is none of the variables that are read; {way_out}\n"
    assert done.stderr == expected


def test_variables_that_are_read_are_not_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in known_variables():
        monkeypatch.setenv(name, "1")
    assert run("model", "create", tmp_path / "m").stderr == ""


def test_every_variable_that_code_names_is_known() -> None:
    files = [
        f
        for p in ("engine", "policies", "tuner", "store", "api")
        for f in ROOT.glob(f"{p}/**/*.py")
    ]
    named = {n for f in files for n in re.findall(r'"(GEARSHIFT_[A-Z_]+)"', f.read_text())}
    assert len(named) > 3
    assert named <= known_variables()
