"""``gearshift keys`` on the database of a service, running or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.cli.conftest import Run

Json = dict[str, Any]


@pytest.fixture
def keys(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``gearshift keys`` on a fresh database."""
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    assert run("db", "upgrade").exit_code == 0
    return lambda *words: run("keys", *words)


def _made(keys: Run, name: str, *scopes: str) -> Json:
    words = [word for scope in scopes for word in ("--scope", scope)]
    done = keys("create", name, *words, "--json")
    assert done.exit_code == 0, done.output
    made: Json = json.loads(done.stdout)
    return made


def _listed(keys: Run) -> dict[str, Json]:
    return {key["name"]: key for key in json.loads(keys("list", "--json").stdout)["keys"]}


def test_a_key_is_shown_once_and_listed_without_its_secret(keys: Run) -> None:
    made = _made(keys, "ci", "tune", "apply")
    assert made["scopes"] == ["apply", "tune"]
    assert made["secret"].startswith(made["prefix"])
    shown, told = keys("list"), keys("list", "--json")
    assert made["secret"] not in shown.stdout + told.stdout
    listed = _listed(keys)["ci"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    row = next(line for line in shown.stdout.splitlines() if made["id"] in line)
    for cell in ("ci", made["prefix"], "apply,", "valid,"):
        assert cell in row


def test_a_key_without_json_is_one_line_that_says_it_is_shown_only_now(keys: Run) -> None:
    done = keys("create", "ops", "--scope", "admin", "--days", 3)
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert "shown only now: gs_" in done.stdout
    assert "valid until" in keys("list").stdout


def test_a_revoked_key_stays_listed_as_revoked(keys: Run) -> None:
    made = _made(keys, "ci", "read")
    assert keys("revoke", made["id"]).exit_code == 0
    assert _listed(keys)["ci"]["revoked_at"] is not None
    assert "revoked 2" in keys("list").stdout
    assert keys("revoke", made["id"], "--json").exit_code == 0  # again: nothing to do


def test_the_last_admin_key_stays_until_there_is_another(keys: Run) -> None:
    first = _made(keys, "first", "admin")
    _made(keys, "reader", "read")
    refused = keys("revoke", first["id"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "make another first (gearshift keys create NAME --scope admin" in refused.stderr
    assert _listed(keys)["first"]["revoked_at"] is None
    second = _made(keys, "second", "admin")
    assert keys("revoke", first["id"]).exit_code == 0
    assert keys("revoke", second["id"]).exit_code == 2  # the revoked one opens nothing


def test_a_rotated_key_is_replaced_by_one_of_the_same_scopes(keys: Run) -> None:
    old = _made(keys, "ops", "admin")
    done = keys("rotate", old["id"], "--overlap-s", 0, "--json")
    new = json.loads(done.stdout)
    assert (new["replaces"], new["scopes"]) == (old["id"], ["admin"])
    assert new["secret"] != old["secret"]
    assert "expired" in keys("list").stdout
    newer = keys("rotate", new["id"], "--overlap-s", 3600).stdout.splitlines()
    assert newer[1].startswith(f"in place of {new['id']} (ops), valid until 2")
    assert newer[1].endswith(" UTC")
    assert keys("revoke", new["id"]).exit_code == 0
    new = {"id": newer[0].split()[1].rstrip(",")}
    assert keys("revoke", new["id"]).exit_code == 2  # the last one that may do everything
    assert keys("rotate", old["id"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "x"), "--scope"),
        (("create", "x", "--scope", "root"), "root"),
        (("create", "", "--scope", "read"), "0 characters"),
        (("create", "x" * 121, "--scope", "read"), "121 characters"),
        (("create", "x", "--scope", "read", "--days", "1e9"), "'--days'"),
        (("create", "x", "--scope", "read", "--days", 10**9), "days"),
        (("revoke", "key_none"), "key_none does not exist"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    keys: Run, words: tuple[str, ...], message: str
) -> None:
    done = keys(*words)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_an_empty_database_is_refused_with_the_command_that_mends_it(
    run: Run, tmp_path: Path
) -> None:
    done = run("keys", "list", "--database-url", f"sqlite:///{tmp_path / 'new.db'}")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "gearshift db upgrade" in done.stderr
