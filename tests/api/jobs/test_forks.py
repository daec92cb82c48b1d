"""Real forks that are killed: others go on, and nothing that was started outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import is_gone
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
# Each fork starts a child of its own, as a live trial starts ranks, and works for ever.
SCRIPT = """
import os, subprocess, sys, time
from pathlib import Path
from api.jobs import forks
from engine.logs import configure_logs

def work():
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{os.getpid()} {rank.pid}\\n")
    if sys.argv[2] == "fail":
        raise ValueError("no database")
    time.sleep(0 if sys.argv[2] == "end" else 600)

configure_logs("info")
forks.SOUND_AFTER_S = float(sys.argv[3])
sys.exit(forks.run_in_forks(work))
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(what: str = "work", sound_after_s: float = 0.0) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SCRIPT, str(log), what, str(sound_after_s)]
        started.append(subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    for _, rank in _begun(log):  # the supervisor does that, by their session
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)


def _begun(log: Path) -> list[tuple[int, int]]:
    """Forks so far, each with the child that it started."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(fork), int(rank)) for fork, rank in (line.split() for line in lines)]


def test_another_goes_on_in_the_place_of_a_killed_one_whose_children_are_ended(
    start: Start, log: Path
) -> None:
    process = start()
    wait_until(lambda: len(_begun(log)) == 1)
    fork, rank = _begun(log)[0]
    os.kill(fork, signal.SIGKILL)
    wait_until(lambda: len(_begun(log)) == 2)
    assert is_gone(fork)
    assert is_gone(rank)
    assert process.poll() is None


def test_a_fork_ends_with_its_parent_however_that_ends(start: Start, log: Path) -> None:
    process = start()
    wait_until(lambda: len(_begun(log)) == 1)
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: is_gone(_begun(log)[0][0]))


@pytest.mark.parametrize(("what", "code", "words"), [("end", 0, ""), ("fail", 1, "no database")])
def test_work_that_ends_by_itself_is_not_done_again(
    start: Start, log: Path, what: str, code: int, words: str
) -> None:
    _, told = (process := start(what)).communicate()
    assert process.returncode == code
    assert words in told.decode()
    ((_, rank),) = _begun(log)
    assert is_gone(rank)


def test_what_is_killed_as_soon_as_it_begins_is_left_to_whoever_started_it(
    start: Start, log: Path
) -> None:
    process = start(sound_after_s=600.0)
    wait_until(lambda: len(_begun(log)) == 1)
    os.kill(_begun(log)[0][0], signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL
    assert len(_begun(log)) == 1
