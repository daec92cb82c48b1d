"""The steps of a job, without a workflow engine: each may run twice and nothing happens twice."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from api.jobs.leases import DeviceLeases
from api.jobs.runner import JobRunner, JobStep
from api.services.audit import service_caller
from api.services.job_moves import move
from api.services.jobs import cancel
from api.web.settings import ServiceSettings
from store import Database
from store.models import JobState
from store.outage import Patience
from tests.api.jobs.counting_backend import CountingBackend, open_gate
from tests.waiting import wait_until

Json = dict[str, Any]


@pytest.fixture
def database(current_url: str) -> Any:
    database = Database(current_url)
    yield database
    database.close()


@pytest.fixture
def runner(database: Database, settings: ServiceSettings) -> JobRunner:
    return _runner(database, settings)


def _runner(database: Database, settings: ServiceSettings) -> JobRunner:
    backend = CountingBackend()
    fast = settings.model_copy(update={"device_wait_s": 0.0})
    return JobRunner(database, backend, DeviceLeases(database, fast), Patience())


def _job(database: Database, tmp_path: Path, **options: Any) -> str:
    on_busy = options.pop("on_busy", "simulate")
    spec = {
        "sla": "p95_ttft_ms<=500",
        "on_busy": on_busy,
        "options": {"log": str(tmp_path / "log"), **options},
    }
    with database.begin() as uow:
        return uow.jobs.add(spec=spec, num_trials=3, created_by="key_test").id


def _log(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []  # nothing is written so far


def _state(database: Database, job_id: str) -> tuple[JobState, str]:
    with database.read() as uow:
        job = uow.jobs.get(job_id)
    return job.state, job.reason


def test_a_job_runs_from_queued_to_a_recommendation(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    assert runner.begin(job_id) is JobStep.GO_ON
    assert [runner.trial(job_id, n) for n in range(3)] == [JobStep.GO_ON] * 3
    runner.finish(job_id)
    assert _state(database, job_id) == (JobState.SUCCEEDED, "cheapest")
    with database.read() as uow:
        found = uow.recommendations.find_for_job(job_id)
        events = [event.type for event in uow.jobs.list_events(job_id, after=0)]
    assert found is not None
    assert found.cost_model_id is not None
    assert events == ["state", "cost_model", *["progress", "trial"] * 3, "state"]


def test_a_step_that_runs_again_finds_its_row_and_does_nothing(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    runner.begin(job_id)
    runner.trial(job_id, 0)
    restarted = _runner(database, settings)
    assert restarted.begin(job_id) is JobStep.GO_ON
    assert restarted.trial(job_id, 0) is JobStep.GO_ON
    restarted.trial(job_id, 1)
    assert [line.split()[0] for line in _log(tmp_path)] == ["prepare", "0", "prepare", "1"]
    assert _log(tmp_path)[2] == "prepare again after [0]", "what was kept spares the work"
    assert _log(tmp_path)[3].endswith("[0]"), "the second trial knows the first"


def test_a_cancelled_job_stops_before_its_next_trial_and_keeps_the_finished(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    runner.begin(job_id)
    runner.trial(job_id, 0)
    with database.begin() as uow:
        cancel(uow, job_id, caller=service_caller("test"))
    assert runner.trial(job_id, 1) is JobStep.STOP
    runner.finish(job_id)
    assert _state(database, job_id) == (JobState.CANCELLED, "cancelled; 1 of 3 trials kept")
    with database.read() as uow:
        assert [r["number"] for r in uow.trials.list_records(job_id)] == [0]


def test_what_trials_rest_on_is_kept_while_the_job_is_open_and_no_longer(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    def kept() -> Json | None:
        with database.read() as uow:
            return uow.groundworks.find(job_id)

    job_id = _job(database, tmp_path)
    runner.begin(job_id)
    runner.trial(job_id, 0)
    assert kept() == {"ran": [0]}
    runner.trial(job_id, 1)
    assert kept() == {"ran": [0, 1]}
    runner.finish(job_id)
    assert kept() is None


def test_a_job_cancelled_while_it_is_prepared_is_cancelled_at_once(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, prepare_s=60.0)
    worker = threading.Thread(target=lambda: (runner.begin(job_id), runner.finish(job_id)))
    worker.start()
    wait_until(lambda: (tmp_path / "log").exists())
    with database.begin() as uow:
        cancel(uow, job_id, caller=service_caller("test"))
    wait_until(lambda: _state(database, job_id)[0] is JobState.CANCELLED)
    worker.join()
    assert _state(database, job_id) == (JobState.CANCELLED, "cancelled; 0 of 3 trials kept")


def test_a_job_cancelled_while_it_is_prepared_again_for_its_end_is_cancelled(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, prepare_s=60.0)
    with database.begin() as uow:
        move(uow, uow.jobs.get(job_id), JobState.RUNNING, "a worker took it up")
    worker = threading.Thread(target=_runner(database, settings).finish, args=(job_id,))
    worker.start()
    wait_until(lambda: (tmp_path / "log").exists())
    with database.begin() as uow:
        cancel(uow, job_id, caller=service_caller("test"))
    worker.join()
    assert _state(database, job_id)[0] is JobState.CANCELLED


def test_a_job_cancelled_while_a_worker_takes_it_up_stays_cancelled(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    answers: list[JobStep] = []
    worker = threading.Thread(target=lambda: answers.append(runner.begin(job_id)))
    with database.begin() as uow:
        cancel(uow, job_id, caller=service_caller("test"))
        worker.start()
        time.sleep(0.3)  # by now it waits for the row, and must not have read it before
    worker.join()
    assert answers == [JobStep.STOP]
    assert _state(database, job_id) == (JobState.CANCELLED, "cancelled before it began")


def test_what_a_crash_left_spent_at_the_end_is_known_when_the_end_runs_again(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    runner.begin(job_id)
    with database.begin() as uow:
        for device_seconds in (12.5, 30.0):
            uow.jobs.append_event(
                job_id, "spent", {"seconds": 10.0, "device_seconds": device_seconds}
            )
    runner.finish(job_id)
    with database.read() as uow:
        report = uow.jobs.get(job_id).report
    assert report is not None
    assert report["spent"] == [20.0, 42.5]


def test_a_job_that_meets_no_sla_is_infeasible_with_the_reason(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, infeasible=True)
    runner.begin(job_id)
    runner.finish(job_id)
    assert _state(database, job_id) == (JobState.INFEASIBLE, "TTFT binds")
    with database.read() as uow:
        assert uow.recommendations.find_for_job(job_id) is None


def test_an_input_that_cannot_be_used_fails_the_job_with_its_message(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, explode_at=1)
    runner.begin(job_id)
    runner.trial(job_id, 0)
    assert runner.trial(job_id, 1) is JobStep.STOP
    assert _state(database, job_id) == (JobState.FAILED, "the trace has no rows")


def test_a_finished_job_is_left_as_it_is(
    runner: JobRunner, database: Database, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path)
    with database.begin() as uow:
        move(uow, uow.jobs.get(job_id), JobState.CANCELLED, "by hand")
    assert runner.begin(job_id) is JobStep.STOP
    assert runner.finish(job_id) is JobStep.STOP
    assert _state(database, job_id)[0] is JobState.CANCELLED


def _hold_all(database: Database, settings: ServiceSettings) -> None:
    with database.begin() as uow:
        assert uow.devices.try_lease(
            host=settings.node, devices=range(4), holder="engine:eng_1", expires_at=None
        )


def _leased(database: Database, settings: ServiceSettings) -> dict[int, str]:
    with database.read() as uow:
        return {lease.device: lease.holder for lease in uow.devices.list_leases(settings.node)}


def test_a_live_job_leases_its_devices_until_it_ends(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, devices=3)
    runner.begin(job_id)
    runner.trial(job_id, 0)
    assert _leased(database, settings) == dict.fromkeys(range(3), f"job:{job_id}")
    runner.finish(job_id)
    assert _leased(database, settings) == {}


def test_a_job_that_names_a_device_leases_from_there_on(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, devices=2, first=2)
    runner.begin(job_id)
    assert _leased(database, settings) == dict.fromkeys((2, 3), f"job:{job_id}")
    beyond = _job(database, tmp_path, devices=1, first=4, on_busy="wait")
    assert runner.begin(beyond) is JobStep.STOP
    reason = "there is no device 4: this machine has 4, from 0 on"
    assert _state(database, beyond) == (JobState.FAILED, reason)


def test_a_trial_that_takes_longer_than_a_lease_keeps_its_devices(
    runner: JobRunner,
    database: Database,
    settings: ServiceSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It renews them on the way, long before they would be anybody's."""
    monkeypatch.setattr("api.jobs.leases.RENEWED_SHARE", 1e-5)  # 36 ms

    def ends() -> list[datetime]:
        with database.read() as uow:
            leases = uow.devices.list_leases(settings.node)
            return [lease.expires_at for lease in leases if lease.expires_at is not None]

    job_id = _job(database, tmp_path, devices=2, closed=[0])
    runner.begin(job_id)
    trial = threading.Thread(target=runner.trial, args=(job_id, 0))
    trial.start()
    try:
        wait_until(lambda: len(_log(tmp_path)) == 2)
        begun = ends()
        wait_until(lambda: min(ends()) > max(begun))
        assert len(ends()) == 2
    finally:
        open_gate(tmp_path / "log", 0)
        trial.join()


def test_a_job_whose_devices_an_engine_has_by_now_does_not_run_on_them(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    """It leased two others, and went on with the ranks it had."""
    job_id = _job(database, tmp_path, devices=2)
    runner.begin(job_id)
    with database.begin() as uow:  # its lease ended, as when the clock jumped
        uow.devices.release(f"job:{job_id}")
        uow.devices.try_lease(
            host=settings.node, devices=[0], holder="engine:eng_1", expires_at=None
        )
    assert runner.trial(job_id, 0) is JobStep.STOP
    state, reason = _state(database, job_id)
    assert state is JobState.FAILED
    assert "serving engines keep theirs" in reason
    assert [line.split()[0] for line in _log(tmp_path)] == ["prepare"]


def test_a_resumed_job_takes_back_the_devices_a_dead_worker_left(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, devices=4)
    runner.begin(job_id)
    restarted = _runner(database, settings)
    assert restarted.trial(job_id, 0) is JobStep.GO_ON
    assert len(_leased(database, settings)) == 4


def test_a_job_for_more_devices_than_there_are_gets_all_of_them(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    runner.begin(_job(database, tmp_path, devices=64, on_busy="wait"))
    assert len(_leased(database, settings)) == 4


def test_devices_of_a_serving_engine_are_not_touched_and_the_report_says_simulated(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    _hold_all(database, settings)
    with database.begin() as uow:
        known = uow.cost_models.add(
            fingerprint="test", document={"weights": "plain"}, created_by="key_test"
        )
        uow.cost_models.add(
            fingerprint="test", document={"weights": "int8"}, created_by="key_test"
        ).id = "cm_" + "f" * 21
    job_id = _job(database, tmp_path, devices=1, weights="plain")
    runner.begin(job_id)
    with database.begin() as uow:
        uow.cost_models.add(fingerprint="test", document={"v": 2}, created_by="key_test")
    runner.trial(job_id, 0)
    runner.finish(job_id)
    assert _state(database, job_id)[0] is JobState.SUCCEEDED
    with database.read() as uow:
        report = uow.jobs.get(job_id).report
        found = uow.recommendations.find_for_job(job_id)
    assert found is not None
    assert found.cost_model_id == known.id, "who simulates it again needs the same step times"
    assert report is not None
    assert "comes from simulation" in report["warnings"][0]
    assert set(_leased(database, settings).values()) == {"engine:eng_1"}


def test_without_a_cost_model_a_job_cannot_be_simulated_and_waits_in_vain(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    _hold_all(database, settings)
    job_id = _job(database, tmp_path, devices=1)
    assert runner.begin(job_id) is JobStep.STOP
    assert _state(database, job_id)[0] is JobState.FAILED


def test_a_job_that_must_be_live_waits_and_then_fails_with_the_numbers(
    runner: JobRunner, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    _hold_all(database, settings)
    job_id = _job(database, tmp_path, devices=2, on_busy="wait")
    assert runner.begin(job_id) is JobStep.STOP
    state, reason = _state(database, job_id)
    assert state is JobState.FAILED
    assert "2 of 4 devices" in reason


def test_a_job_cancelled_while_it_waits_for_devices_is_cancelled_not_failed(
    database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    _hold_all(database, settings)
    patient = settings.model_copy(update={"device_wait_s": 60.0})
    runner = JobRunner(database, CountingBackend(), DeviceLeases(database, patient), Patience())
    job_id = _job(database, tmp_path, devices=2, on_busy="wait")
    thread = threading.Thread(target=runner.begin, args=(job_id,))
    thread.start()
    wait_until(lambda: _state(database, job_id)[0] is JobState.RUNNING)
    with database.begin() as uow:
        cancel(uow, job_id, caller=service_caller("test"))
    thread.join()
    runner.finish(job_id)
    assert _state(database, job_id)[0] is JobState.CANCELLED
