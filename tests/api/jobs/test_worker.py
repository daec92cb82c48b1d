"""Real worker processes: killed, restarted, cancelled; no finished trial is lost or repeated."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.jobs.supervisor import COMMAND, ONE_THREAD
from api.schemas.tuning import TuningJobCreate
from api.services.audit import service_caller
from api.services.job_moves import COMMAND_LINE, move
from api.services.jobs import cancel
from api.web.settings import ServiceSettings
from engine.models.create import create_model
from store import Database
from store.models import JobState
from tests.api.jobs.counting_backend import open_gate
from tests.postgres import BOTH_SLOWLY
from tests.tuner.catalogs import write_catalog
from tests.waiting import wait_until

COUNTING = (sys.executable, "-m", "tests.api.jobs.counting_backend")
ROOT = Path(__file__).parents[3]
NUM_TRIALS = 4
Json = dict[str, Any]


@pytest.fixture
def database(current_url: str) -> Iterator[Database]:
    database = Database(current_url)
    yield database
    database.close()


@contextmanager
def _worker(
    database: Database,
    settings: ServiceSettings,
    command: tuple[str, ...] = COUNTING,
    *,
    log: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process; what it says goes to ``log``, if there is one."""
    own = settings.model_copy(update={"database_url": database.url})
    with open(log or os.devnull, "wb") as said:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**ONE_THREAD, **os.environ, **own.environment()},
            stdin=subprocess.PIPE,
            stderr=said if log else None,
        )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(60)
        finally:
            child.kill()  # where it did not end in time, nothing is left all the same


def _job(
    database: Database, tmp_path: Path, *, num_trials: int = NUM_TRIALS, **options: Any
) -> str:
    spec = {
        "sla": "p95_ttft_ms<=500",
        "on_busy": "simulate",
        "options": {"log": str(tmp_path / "log"), **options},
    }
    with database.begin() as uow:
        return uow.jobs.add(spec=spec, num_trials=num_trials, created_by="key_test").id


def _state(database: Database, job_id: str) -> JobState:
    with database.read() as uow:
        return uow.jobs.get(job_id).state


def _done(database: Database, job_id: str) -> list[int]:
    with database.read() as uow:
        return [record["number"] for record in uow.trials.list_records(job_id)]


def _runs(tmp_path: Path) -> list[int]:
    log = tmp_path / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[0]) for line in lines if not line.startswith("prepare")]


@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_killed_worker_resumes_without_losing_or_repeating_a_finished_trial(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, closed=[2])
    with _worker(database, settings) as child:
        wait_until(lambda: len(_runs(tmp_path)) == 3)
        child.send_signal(signal.SIGKILL)
        child.wait()
    open_gate(tmp_path / "log", 2)
    assert _done(database, job_id) == [0, 1]
    assert _state(database, job_id) is JobState.RUNNING
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 60)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == [0, 1, 2, 3]
    # Only the trial that was cut down ran twice.
    assert _runs(tmp_path) == [0, 1, 2, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_job_that_a_backup_brought_back_is_finished_again(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    """The workflow engine's own tables may be newer: there it has ended already."""
    job_id = _job(database, tmp_path)
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 60)
    with database.begin() as uow:
        job = uow.jobs.get(job_id)
        job.state, job.report, job.finished_at = JobState.RUNNING, None, None
        recommended = uow.recommendations.find_for_job(job_id)
        for row in (recommended, *(uow.trials.find(job_id, number) for number in (2, 3))):
            uow.session.delete(row)
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 60)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == [0, 1, 2, 3]
    assert _runs(tmp_path) == [0, 1, 2, 3, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_worker_killed_twice_in_thirty_trials_makes_and_tells_of_each_once(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    cut = [10, 20]
    job_id = _job(database, tmp_path, num_trials=30, closed=cut)
    for kills, number in enumerate(cut):
        with _worker(database, settings) as child:
            begun = number + 1 + kills
            wait_until(lambda begun=begun: len(_runs(tmp_path)) == begun, 60)
            child.send_signal(signal.SIGKILL)
            child.wait()
        open_gate(tmp_path / "log", number)
    with _worker(database, settings):
        wait_until(lambda: _state(database, job_id).is_final, 60)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == list(range(30))
    assert _runs(tmp_path) == sorted([*range(30), *cut])
    with database.read() as uow:
        events = uow.jobs.list_events(job_id, after=0, limit=1000)
    assert [e.data["number"] for e in events if e.type == "trial"] == list(range(30))


@pytest.mark.slow
@pytest.mark.parametrize("current_url", ["sqlite"], indirect=True)  # a worker's own disk
def test_a_job_whose_worker_could_write_nothing_for_a_while_goes_on(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    """As on a full disk, where the workflow engine cannot keep how far the job is either."""
    job_id = _job(database, tmp_path, closed=[1])
    with _worker(database, settings) as child:
        wait_until(lambda: len(_runs(tmp_path)) == 2)
        usual = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, usual[1]))
        open_gate(tmp_path / "log", 1)
        time.sleep(2.0)
        assert _done(database, job_id) == [0]
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, usual)
        wait_until(lambda: _state(database, job_id).is_final, 60)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == [0, 1, 2, 3]


@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_job_cancelled_half_way_keeps_its_finished_trials_and_one_of_a_command_is_left_to_it(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    with database.begin() as uow:
        own = uow.jobs.add(
            spec={"options": {"log": str(tmp_path / "own")}}, num_trials=1, created_by=COMMAND_LINE
        )
        move(uow, own, JobState.RUNNING, "run by gearshift tune")
    job_id = _job(database, tmp_path, closed=[1])
    with _worker(database, settings):
        wait_until(lambda: len(_runs(tmp_path)) == 2)
        with database.begin() as uow:
            cancel(uow, job_id, caller=service_caller("test"))
        wait_until(lambda: _state(database, job_id).is_final)
    assert _state(database, job_id) is JobState.CANCELLED
    # The trial under way was cut short and does not count.
    assert _done(database, job_id) == [0]
    assert _runs(tmp_path) == [0, 1]
    assert _state(database, own.id) is JobState.RUNNING
    assert _done(database, own.id) == []
    assert not (tmp_path / "own").exists()


def _tuning(database: Database, job_body: Json, **changes: Any) -> str:
    spec = TuningJobCreate(**{**job_body, **changes}).model_dump(mode="json")
    with database.begin() as uow:
        return uow.jobs.add(spec=spec, num_trials=spec["trials"], created_by="key_test").id


def _ranks_of(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Processes that the worker has started, a fork of it, to measure with."""
    (worker,) = psutil.Process(child.pid).children() or (None,)
    return [] if worker is None else worker.children(recursive=True)


def _document(database: Database, job_id: str) -> Json:
    with database.read() as uow:
        report = uow.jobs.get(job_id).report
    assert report is not None
    return report


@pytest.mark.slow  # workers that count, killed as well, are tried each time
@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_the_real_tuner_killed_half_way_ends_with_the_report_of_an_undisturbed_job(
    database: Database, settings: ServiceSettings, job_body: Json
) -> None:
    disturbed = _tuning(database, job_body, num_devices=1)
    with _worker(database, settings, COMMAND) as child:
        wait_until(lambda: len(_done(database, disturbed)) >= 1, 60)
        child.send_signal(signal.SIGKILL)
        child.wait()
    undisturbed = _tuning(database, job_body, num_devices=1)
    with _worker(database, settings, COMMAND):
        wait_until(lambda: _state(database, undisturbed).is_final, 90)
        wait_until(lambda: _state(database, disturbed).is_final, 90)
    documents = [_document(database, job_id) for job_id in (disturbed, undisturbed)]
    for document in documents:
        trials = [*document["trials"], document["baseline"]]
        costs = [cost for trial in trials for cost in trial["costs"]]
        for timed in (*trials, *costs, *document["costs"]):
            timed.pop("seconds")
    assert documents[0] == documents[1]
    with database.read() as uow:
        found = uow.recommendations.find_for_job(disturbed)
    assert found is not None
    assert found.schedule is not None
    assert found.document["fidelity"] == "simulated"


@pytest.mark.slow  # a preparation that waits is cancelled each time (test_runner.py)
@pytest.mark.parametrize("current_url", ["sqlite"], indirect=True)
def test_a_job_cancelled_while_it_measures_the_machine_is_cancelled_then_and_leaves_no_rank(
    database: Database, settings: ServiceSettings, job_body: Json, tmp_path: Path
) -> None:
    create_model(tmp_path / "tiny", preset="tiny")
    local = {"model_dir": str(tmp_path / "tiny"), "hardware": "local", "num_devices": 1}
    job_id = _tuning(database, job_body, **local, options={"profile_seconds": 3600.0})
    with _worker(database, settings, COMMAND) as child:
        wait_until(lambda: _ranks_of(child))
        with database.begin() as uow:
            cancel(uow, job_id, caller=service_caller("test"))
        wait_until(lambda: _state(database, job_id).is_final, 30)
        assert _ranks_of(child) == []
    assert _state(database, job_id) is JobState.CANCELLED


@pytest.mark.parametrize("current_url", BOTH_SLOWLY, indirect=True)
def test_a_job_runs_on_hardware_and_a_backend_of_the_users_own_or_fails_with_the_tuners_words(
    database: Database,
    settings: ServiceSettings,
    job_body: Json,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fails for hardware that nobody knows; for a pipe, a link out of the folders and a bad
    line, which only the job's own process looks at."""
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(write_catalog(tmp_path / "own")))
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "endless")
    (tmp_path / "rows.csv").write_text("arrival_s,input_tokens,output_tokens\n0.5,ten,5\n")
    said = {
        f"auto:{tmp_path / 'pipe'}": "is no regular file",
        f"csv:{tmp_path / 'endless'}": "leads to /dev/zero",
        f"csv:{tmp_path / 'rows.csv'}": "line 2",
    }
    refused = {_tuning(database, job_body, workload=text): part for text, part in said.items()}
    refused[_tuning(database, job_body, hardware="9xabacus")] = "'abacus' is not known"
    own = {"model_dir": "mini", "hardware": "2xchip9", "backend": "ours", "trials": 2}
    good = _tuning(database, job_body, **own)
    with _worker(database, settings, COMMAND):
        for job_id in (*refused, good):
            wait_until(lambda job_id=job_id: _state(database, job_id).is_final, 60)
    for job_id, part in refused.items():
        with database.read() as uow:
            job = uow.jobs.get(job_id)
        assert job.state is JobState.FAILED
        assert part in job.reason
    document = _document(database, good)
    assert document["spec"]["backend"] == "ours"
    assert len(document["trials"]) == 2
