"""The client against the service on a real port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api.clients.client import ClientError, GearshiftClient
from api.services import jobs
from api.web.settings import ServiceSettings
from store import Database
from store.models import DecisionRow, JobState
from tests.api.conftest import ADMIN
from tests.api.live import free_port, running_service
from tests.api.worlds import add_recommendation, engine_body

Json = dict[str, Any]


@pytest.fixture
def remote(settings: ServiceSettings, database: Database) -> Iterator[GearshiftClient]:
    with running_service(settings, free_port()) as url, GearshiftClient(url, ADMIN) as client:
        yield client


def test_a_job_is_followed_to_its_end(
    remote: GearshiftClient, database: Database, job_body: Json
) -> None:
    job_id = remote.create_job(job_body)["id"]

    def work() -> None:
        for number in range(3):
            with database.begin() as uow:
                uow.jobs.append_event(job_id, "trial", {"number": number})
        with database.begin() as uow:
            jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")

    thread = threading.Thread(target=work)
    thread.start()
    events = list(remote.follow_job(job_id))
    thread.join()
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert [event.type for event in events] == ["state", "trial", "trial", "trial", "state"]
    assert events[-1].data["state"] == "succeeded"


def test_a_job_is_followed_over_the_end_and_the_start_of_its_service(
    settings: ServiceSettings, database: Database, job_body: Json
) -> None:
    port = free_port()
    with GearshiftClient(f"http://127.0.0.1:{port}", ADMIN) as client:
        with running_service(settings, port):
            job_id = client.create_job(job_body)["id"]
            events = client.follow_job(job_id)
            first = next(events)
        told = threading.Event()

        def work() -> None:
            with running_service(settings, port), database.begin() as uow:
                jobs.move(uow, uow.jobs.get(job_id), JobState.RUNNING, "taken up")
                jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")
            with running_service(settings, port):
                told.wait(60)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            rest = list(events)
        finally:
            told.set()
            thread.join()
    assert [event.seq for event in (first, *rest)] == [1, 2, 3]
    assert rest[-1].data["state"] == "succeeded"


def test_lists_come_whole_over_their_pages(remote: GearshiftClient, database: Database) -> None:
    engine_id = _register(remote)
    with database.begin() as uow:
        for number in range(250):
            uow.decisions.add(
                DecisionRow(
                    engine_id=engine_id,
                    action="hold",
                    reason="in_band",
                    band_index=number,
                    settings=None,
                    rejected=[],
                    observed={},
                    policy_version=None,
                )
            )
    bands = [decision["band_index"] for decision in remote.list_decisions(engine_id)]
    assert bands == list(range(249, -1, -1))


def test_an_engine_is_waited_for_until_it_runs_a_version(remote: GearshiftClient) -> None:
    engine_id = _register(remote)
    assert remote.wait_applied(engine_id, 1)["id"] == engine_id
    with pytest.raises(TimeoutError, match="version 2"):
        remote.wait_applied(engine_id, 2, timeout_s=0.1)


def test_a_recommendation_is_applied(remote: GearshiftClient, database: Database) -> None:
    engine_id = _register(remote)
    recommendation_id = add_recommendation(database)
    assert remote.get_recommendation(recommendation_id)["schedule"]["bands"]
    answer = remote.apply_recommendation(recommendation_id, engine_id)
    assert answer["policy"]["requested"]["provenance"]["recommendation"] == recommendation_id
    assert remote.list_decisions(engine_id) == []


def test_a_refusal_is_raised_with_the_services_own_words(
    remote: GearshiftClient, job_body: Json
) -> None:
    with pytest.raises(ClientError, match="p95_speed") as caught:
        remote.create_job({**job_body, "sla": "p95_speed<=1"})
    assert (caught.value.status, caught.value.problem["code"]) == (422, "invalid_request")


def _register(remote: GearshiftClient) -> str:
    return str(remote._object("POST", "/v1/engines", json=engine_body())["id"])
