"""A database that goes away in the middle of a job, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.jobs.leases import DeviceLeases
from api.jobs.runner import JobRunner, JobStep
from api.web.settings import ServiceSettings
from migrations.runner import upgrade
from store import Database
from store.models import JobState
from store.outage import Patience
from tests.api.conftest import ADMIN
from tests.api.jobs.counting_backend import CountingBackend
from tests.api.jobs.test_worker import NUM_TRIALS, _done, _job, _runs, _state, _worker
from tests.postgres import PostgresCluster, missing_reason, running_cluster
from tests.waiting import wait_until


@pytest.fixture
def service_url(sqlite_url: str) -> str:
    """Settings of a database that the tests replace."""
    return sqlite_url


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """A cluster of this module alone: no other test may miss it while it is away."""
    if reason := missing_reason():
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def database(cluster: PostgresCluster) -> Iterator[Database]:
    database = Database(cluster.create_database())
    upgrade(database.engine)
    yield database
    database.close()


@pytest.mark.slow  # its outage is waited for; the test below tries a shorter one
def test_a_job_waits_out_six_seconds_without_its_database_and_loses_no_trial(
    cluster: PostgresCluster, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    job_id = _job(database, tmp_path, seconds=0.5)
    with _worker(database, settings):
        wait_until(lambda: len(_done(database, job_id)) >= 1, 60)
        with cluster.away():
            time.sleep(6)
        wait_until(lambda: _state(database, job_id).is_final, 90)
    assert _state(database, job_id) is JobState.SUCCEEDED
    assert _done(database, job_id) == list(range(NUM_TRIALS))
    # At most the trial that was between its begin and its end runs once more.
    assert len(_runs(tmp_path)) <= NUM_TRIALS + 1


def test_what_a_trial_found_while_the_database_was_away_is_kept_when_it_is_back(
    cluster: PostgresCluster, database: Database, settings: ServiceSettings, tmp_path: Path
) -> None:
    runner = JobRunner(
        database, CountingBackend(), DeviceLeases(database, settings), Patience(first_pause_s=0.02)
    )
    job_id = _job(database, tmp_path)
    assert runner.begin(job_id) is JobStep.GO_ON
    with cluster.away():
        pass  # every pooled connection is dead now
    assert runner.trial(job_id, 0) is JobStep.GO_ON
    assert _runs(tmp_path) == [0]
    assert _done(database, job_id) == [0]


def test_requests_are_told_to_come_again_while_the_database_is_away(
    cluster: PostgresCluster, database: Database, settings: ServiceSettings
) -> None:
    own = settings.model_copy(update={"database_url": database.url})
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with TestClient(create_app(own), headers=headers) as client:
        assert client.get("/v1/engines").status_code == 200
        with cluster.away():
            refused = client.get("/v1/engines")
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "2"
        assert refused.json()["code"] == "database_away"
        assert client.get("/v1/engines").status_code == 200
