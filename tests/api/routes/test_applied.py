"""Recommendations that are put in force over REST, and what is left of those that are not."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.spec.settings import Caps, Settings
from store import Database
from tests.api.worlds import (
    BUSY,
    acknowledge,
    add_recommendation,
    engine_body,
    etag_of,
    patched,
    register,
)

Json = dict[str, Any]


@pytest.fixture
def service_url(current_url: str) -> str:
    """Both databases: row locks decide what happens here."""
    return current_url


@pytest.mark.parametrize("envelope", [{}, {"max_num_seqs": None}, {"max_queue": 4}])
def test_an_envelope_says_only_what_is_not_by_default(
    client: TestClient, database: Database, envelope: Json
) -> None:
    engine_id = register(client, envelope=envelope)
    url = f"/v1/recommendations/{add_recommendation(database)}:apply"
    assert client.post(url, json={"engine_id": engine_id}).status_code == 200
    shown = client.get(f"/v1/engines/{engine_id}").json()["envelope"]
    assert shown == asdict(Caps(max_queue=envelope.get("max_queue")))


def test_applying_a_recommendation_writes_its_policy_sla_and_schedule(
    client: TestClient, database: Database
) -> None:
    engine_id = register(client)
    recommendation_id = add_recommendation(database)
    answer = client.post(
        f"/v1/recommendations/{recommendation_id}:apply", json={"engine_id": engine_id}
    )
    assert answer.status_code == 200, answer.text
    requested = answer.json()["policy"]["requested"]
    assert requested["sla"] == "p95_ttft_ms<=500"
    assert requested["provenance"]["recommendation"] == recommendation_id
    assert answer.json()["predicted"]["metrics"]["ttft_ms"] == {"p95": 120.0}
    with database.read() as uow:
        assert uow.engines.list_scheduled_ids() == []  # not before the engine has it
    acknowledge(client, engine_id)
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["sla"], engine["recommendation_id"]) == ("p95_ttft_ms<=500", recommendation_id)
    with database.read() as uow:
        assert uow.engines.list_scheduled_ids() == [engine_id]


def _row(database: Database, engine_id: str) -> Json:
    """Everything of an engine that a version may change."""
    with database.read() as uow:
        row = uow.engines.get(engine_id)
        document = uow.policies.get(engine_id, row.desired_version).document
    names = ("sla", "recommendation_id", "schedule", "control_memory", "effective_policy")
    return {name: getattr(row, name) for name in names} | {"document": document}


@pytest.mark.parametrize("is_patched_over", [False, True])
def test_nothing_of_a_recommendation_that_the_engine_refuses_remains(
    client: TestClient, database: Database, is_patched_over: bool
) -> None:
    """Neither at first nor over another one, with its own guards and SLA, nor under a patch."""
    engine_id = register(client)
    running = engine_body()["policy"]
    for _ in range(2):
        before = _row(database, engine_id)
        url = f"/v1/recommendations/{add_recommendation(database)}:apply"
        assert client.post(url, json={"engine_id": engine_id}).status_code == 200
        if is_patched_over:
            patch = {"sla": "p95_ttft_ms<=1", "guards": {"max_gpus": 3}}
            assert patched(client, engine_id, patch, etag_of(client, engine_id)).status_code == 200
        acknowledge(client, engine_id, result="refused", message="no", policy=running)
        assert _row(database, engine_id) == before
        client.post(url, json={"engine_id": engine_id})
        acknowledge(client, engine_id)
        running = _row(database, engine_id)["effective_policy"]


def test_a_rollback_takes_back_what_came_with_a_recommendation(
    client: TestClient, database: Database
) -> None:
    """Its schedule too, or the controller would leave the settings that were gone back to."""
    engine_id = register(client)
    first, second = add_recommendation(database), add_recommendation(database)
    for recommendation_id in (first, second):
        url = f"/v1/recommendations/{recommendation_id}:apply"
        assert client.post(url, json={"engine_id": engine_id}).status_code == 200
        acknowledge(client, engine_id)
    back_to = f"/v1/engines/{engine_id}:rollback"
    assert client.post(back_to, json={}).json()["policy"]["version"] == 4
    acknowledge(client, engine_id)
    assert client.get(f"/v1/engines/{engine_id}").json()["recommendation_id"] == first
    assert client.post(back_to, json={"version": 1}).status_code == 200
    acknowledge(client, engine_id)
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["sla"], engine["recommendation_id"]) == (None, None)
    with database.read() as uow:
        assert uow.engines.get(engine_id).schedule is None
        assert uow.engines.list_scheduled_ids() == []
    again = client.post(back_to, json={"version": 5}).json()["policy"]["version"]
    assert again == 5, "nothing changes, so nothing is written"


def test_a_change_away_from_the_recommendation_has_no_prediction(
    client: TestClient, database: Database
) -> None:
    engine_id = register(client)
    url = f"/v1/recommendations/{add_recommendation(database)}:apply"
    client.post(url, json={"engine_id": engine_id})
    answer = patched(client, engine_id, BUSY.to_json(), etag_of(client, engine_id))
    assert answer.json()["predicted"] is None


def test_each_document_of_a_request_is_read_once(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_id, recommendation_id = register(client), add_recommendation(database)
    num_read = 0
    from_json = Settings.from_json

    def counted(document: Json) -> Settings:
        nonlocal num_read
        # The loops' first turn may come only now, in a thread of theirs: requests run in AnyIO's.
        num_read += threading.current_thread().name == "AnyIO worker thread"
        return from_json(document)

    monkeypatch.setattr(Settings, "from_json", counted)
    url = f"/v1/recommendations/{recommendation_id}:apply"
    assert client.post(url, json={"engine_id": engine_id}).status_code == 200
    assert num_read == 2  # the policy before, and the recommendation
    etag, num_read = etag_of(client, engine_id), 0
    assert patched(client, engine_id, {"mode": "base"}, etag).status_code == 200
    assert num_read == 2  # the policy before, and the patched one
