"""``gearshift serve`` as a real process, and ``gearshift db``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.web.settings import ServiceSettings
from tests.api.cli.conftest import Run
from tests.postgres import PostgresCluster
from tests.processes import wait_gone
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
Json = dict[str, Any]
# Without what these tests look for nothing in, which takes a second to import.
QUIET = {"GEARSHIFT_RUN_WORKER": "false", "GEARSHIFT_DASHBOARD": "false"}


def _environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")}
    return {**clean, "GEARSHIFT_DATA_DIR": str(tmp_path), "GEARSHIFT_PORT": "0", **changes}


@contextmanager
def _serving(tmp_path: Path, **changes: str) -> Iterator[tuple[subprocess.Popen[str], Json]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", "serve", "--json"],
        env=_environment(tmp_path, **changes),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        announced = json.loads(child.stdout.readline())
        wait_until(lambda: _is_up(announced["url"]))
        yield child, announced
    finally:
        child.terminate()
        try:
            assert child.wait(60) == 0
        finally:
            child.kill()  # where it did not end in time, nothing is left all the same
            assert child.stdout is not None
            child.stdout.close()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


def _lists_keys(url: str, secret: str) -> bool:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(f"{url}/v1/api-keys", headers=headers).is_success


@pytest.fixture
def run_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands on the data of a service, in this process."""
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    return run


def test_a_first_key_is_made_by_the_first_start_that_serves_and_printed_once_and_works(
    tmp_path: Path, run_there: Run
) -> None:
    """That start has its worker and dashboard, too, and ends by Ctrl-C."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_there("serve", "--port", port)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1
    with _serving(tmp_path) as (child, announced):
        assert _lists_keys(announced["url"], announced["admin_key"])
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130, "as after Ctrl-C"
        child.returncode = 0
    with _serving(tmp_path, **QUIET) as (_, again):
        assert again["admin_key"] is None
        assert _lists_keys(again["url"], announced["admin_key"])


def test_a_key_that_could_not_be_shown_is_not_kept(tmp_path: Path, run_there: Run) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "api.cli.main", "serve"],
            env=_environment(tmp_path, **QUIET),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode != 0
    assert json.loads(run_there("keys", "list", "--json").stdout) == {"keys": []}


def test_keys_made_and_revoked_beside_a_running_service_count_at_once(
    tmp_path: Path, run_there: Run
) -> None:
    with _serving(tmp_path, **QUIET) as (_, announced):
        url = announced["url"]
        words = ("keys", "create", "spare", "--scope", "admin", "--json")
        made = json.loads(run_there(*words).stdout)
        assert _lists_keys(url, made["secret"])
        first = json.loads(run_there("keys", "list", "--json").stdout)["keys"][0]
        assert run_there("keys", "revoke", first["id"]).exit_code == 0
        assert not _lists_keys(url, announced["admin_key"])
        headers = {"Authorization": f"Bearer {made['secret']}"}
        refused = httpx.delete(f"{url}/v1/api-keys/{made['id']}", headers=headers)
        assert refused.status_code == 409
        assert "make another first" in refused.json()["detail"]


def test_the_worker_gets_no_keys_and_ends_with_its_parent_even_when_that_is_killed(
    tmp_path: Path,
) -> None:
    secret = "gs_an_admin_key_that_is_long_enough"
    folder = tmp_path / "data"
    changes = {
        "GEARSHIFT_ADMIN_KEY": secret,
        "GEARSHIFT_CONTROL_KEY": secret,
        "GEARSHIFT_DASHBOARD": "false",
        "GEARSHIFT_DATA_DIR": str(folder),
    }
    with _serving(tmp_path, **changes) as (parent, announced):
        assert _lists_keys(announced["url"], secret)
        wait_until(lambda: (folder / "gearshift.jobs.db").exists())
        (worker,) = _children(parent.pid)
        environment = Path(f"/proc/{worker}/environ").read_text()
        assert f"GEARSHIFT_DATA_DIR={folder}" in environment
        assert secret not in environment
        modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.returncode = 0  # the kill is the point of this test
        wait_gone([worker])
    assert modes["gearshift.db"] == 0o600, "files are their owner's alone"
    assert {mode for name, mode in modes.items() if ".db" in name} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_every_setting_is_listed_by_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("serve", "--help").stdout
    for name in ServiceSettings.model_fields:
        assert f"GEARSHIFT_{name.upper()}" in shown


def test_db_check_refuses_an_empty_database_until_it_is_upgraded(run_there: Run) -> None:
    before = run_there("db", "check")
    assert before.exit_code == 2
    assert "gearshift db upgrade" in before.stderr
    assert run_there("db", "upgrade").exit_code == 0
    after = run_there("db", "check", "--json")
    assert (after.exit_code, json.loads(after.stdout)["is_current"]) == (0, True)


def test_serve_refuses_a_stale_postgresql_schema_with_the_command_that_mends_it(
    run_there: Run, postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_cluster.create_database()
    monkeypatch.setenv("GEARSHIFT_DATABASE_URL", url)
    done = run_there("serve", "--port", 0)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "gearshift db upgrade" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    postgres_cluster.drop_database(url)


@pytest.mark.parametrize("url", ["mysql://h/d", "nonsense", "sqlite:////no/such/folder/g.db"])
def test_a_database_url_that_cannot_serve_is_one_line(
    run_there: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATABASE_URL", url)
    done = run_there("serve", "--port", 0)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    # The watcher thread starts the worker, so it is listed under that thread.
    found = [path.read_text().split() for path in listed.parent.parent.glob("*/children")]
    return [int(child) for children in found for child in children]
