"""``gearshift doctor`` tells what is there, what is missing, and the way out."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli.main import create_app
from api.doctor.checks import Mark, examine


def test_a_machine_that_lacks_nothing_needed_ends_with_0_and_names_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("GEARSHIFT_DATABASE_URL", raising=False)
    monkeypatch.setenv("GEARSHIFT_NO_COMPILER", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(create_app(), ["doctor", "--port", str(port), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["is_well"]
    found = {each["part"]: each for each in document["findings"]}
    assert {"versions", "processor", "devices", "torch", "database", "extras"} <= set(found)
    assert f"{port}: " in found["ports"]["found"]
    assert "unset GEARSHIFT_NO_COMPILER" in found["compiler"]["way_out"]
    assert all(each["way_out"] for each in document["findings"] if each["mark"] == "note")


def test_a_database_that_does_not_answer_is_missing_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a-folder"
    folder.mkdir()
    monkeypatch.setenv("GEARSHIFT_DATABASE_URL", f"sqlite:///{folder}")
    done = CliRunner().invoke(create_app(), ["doctor"])
    assert done.exit_code == 2, done.output
    line = next(row for row in done.stdout.splitlines() if row.split()[1] == "database")
    assert line.startswith("missing")
    assert "GEARSHIFT_DATABASE_URL" in done.stdout


def test_an_older_schema_is_missing_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.db").touch()
    monkeypatch.setenv("GEARSHIFT_DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    found = {each.part: each for each in examine((1,))}
    assert found["database"].mark is Mark.MISSING
    assert found["database"].way_out == "gearshift db upgrade"
