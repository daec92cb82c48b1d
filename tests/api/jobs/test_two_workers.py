"""Two control planes on one database: every job is prepared once, and none is left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.jobs.workflow import POLL_S
from api.web.settings import ServiceSettings
from store import Database
from store.models import JobState
from tests.api.jobs.counting_backend import open_gate
from tests.api.jobs.test_worker import NUM_TRIALS, _done, _job, _runs, _state, _worker
from tests.postgres import BOTH_SLOWLY, SQLITE_SLOWLY
from tests.waiting import wait_until


@pytest.fixture
def database(current_url: str) -> Iterator[Database]:
    database = Database(current_url)
    yield database
    database.close()


@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_second_worker_of_the_same_name_prepares_no_job_again(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    jobs = [_job(database, folder, closed=[0]) for folder in folders]
    with _worker(database, settings):
        wait_until(lambda: any(_runs(folder) for folder in folders), 60)
        with _worker(database, settings, log=tmp_path / "log"):
            wait_until(lambda: "worker ready" in (tmp_path / "log").read_text(), 60)
            time.sleep(1.5 * POLL_S)  # by now it has looked for jobs, those under way among them
            for folder in folders:
                open_gate(folder / "log", 0)
            wait_until(lambda: all(_state(database, job).is_final for job in jobs), 120)
    for job, folder in zip(jobs, folders, strict=True):
        assert _state(database, job) is JobState.SUCCEEDED
        assert _runs(folder) == list(range(NUM_TRIALS))
        assert (folder / "log").read_text().count("prepare") == 1


@pytest.mark.parametrize("current_url", SQLITE_SLOWLY, indirect=True)
def test_the_job_of_a_worker_that_never_comes_back_is_finished_by_another(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, closed=[1])
    gone = settings.model_copy(update={"worker_id": "gone"})
    with _worker(database, gone) as child:
        wait_until(lambda: len(_runs(tmp_path)) == 2, 60)
        child.send_signal(signal.SIGKILL)
        child.wait()
    open_gate(tmp_path / "log", 1)
    assert _done(database, job_id) == [0]
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 90)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == list(range(NUM_TRIALS))
