"""The worker's supervisor: notices a dead worker by its exit code and starts another."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from api.jobs.supervisor import WorkerSupervisor
from api.web.settings import ServiceSettings
from tests.processes import is_gone
from tests.waiting import wait_until

# Starts a grandchild, as a live trial starts ranks, and waits for its input to close.
SCRIPT = """
import pathlib, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with pathlib.Path(sys.argv[1]).open("a") as log:
    log.write(f"{rank.pid}\\n")
sys.stdin.read()
"""


@pytest.fixture
def service_url(sqlite_url: str) -> str:
    """The worker of these tests opens none."""
    return sqlite_url


def _ranks(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_killed_worker_is_replaced_and_nothing_it_started_outlives_it(
    settings: ServiceSettings, tmp_path: Path
) -> None:
    log = tmp_path / "ranks"
    supervisor = WorkerSupervisor(settings, (sys.executable, "-c", SCRIPT, str(log)))
    supervisor.start()
    wait_until(lambda: len(_ranks(log)) == 1)
    first = supervisor.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(_ranks(log)) == 2)
    assert supervisor.pid not in (None, first)
    wait_until(lambda: is_gone(_ranks(log)[0]))
    supervisor.stop()
    assert supervisor.pid is None
    wait_until(lambda: is_gone(_ranks(log)[1]))


def test_the_pause_after_a_worker_that_lived_long_is_short_again(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.jobs.supervisor.SOUND_AFTER_S", 0.0)
    monkeypatch.setattr("api.jobs.supervisor.FIRST_PAUSE_S", 0.01)
    with capture_logs() as lines:
        supervisor = WorkerSupervisor(settings, (sys.executable, "-c", ""))
        supervisor.start()
        wait_until(lambda: len(lines) >= 3)
        supervisor.stop()
    assert {line["pause_s"] for line in lines} == {0.01}


def test_a_worker_that_cannot_be_started_is_started_when_it_can_be(
    settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.jobs.supervisor.FIRST_PAUSE_S", 0.01)
    program = tmp_path / "worker"
    supervisor = WorkerSupervisor(settings, (str(program),))
    with capture_logs() as lines:
        supervisor.start()
        wait_until(lambda: len(lines) >= 2)
        assert "No such file" in lines[0]["error"]
        program.symlink_to(sys.executable)  # reads its input until that is closed
        wait_until(lambda: supervisor.pid is not None)
    supervisor.stop()
