"""Two control planes on one database: every job is prepared once, and none is left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.web.settings import ServiceSettings
from store import Database
from store.models import JobState
from tests.api.jobs.test_worker import NUM_TRIALS, _done, _job, _runs, _state, _worker
from tests.api.live import wait_until
from tests.postgres import BOTH_SLOWLY, SQLITE_SLOWLY


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
    jobs = [_job(database, folder, seconds=0.5) for folder in folders]
    with _worker(database, settings):
        wait_until(lambda: any(_runs(folder) for folder in folders), 60)
        with _worker(database, settings):
            wait_until(lambda: all(_state(database, job).is_final for job in jobs), 120)
    for job, folder in zip(jobs, folders, strict=True):
        assert _state(database, job) is JobState.SUCCEEDED
        assert _runs(folder) == list(range(NUM_TRIALS))
        assert (folder / "log").read_text().count("prepare") == 1


@pytest.mark.parametrize("current_url", SQLITE_SLOWLY, indirect=True)
def test_the_job_of_a_worker_that_never_comes_back_is_finished_by_another(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, seconds=0.5)
    gone = settings.model_copy(update={"worker_id": "gone"})
    with _worker(database, gone) as child:
        wait_until(lambda: len(_done(database, job_id)) >= 1, 60)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 90)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == list(range(NUM_TRIALS))
