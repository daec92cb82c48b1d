"""Settings that somebody changed at the engine itself, and what the policy says becomes of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from api.control.controller import Controller
from store import Database
from store.models import PolicyVersion
from tests.api.worlds import acknowledge, add_recommendation, context_of, heartbeat_body, register

Json = dict[str, Any]


@pytest.fixture
def controller(client: TestClient) -> Controller:
    context = context_of(client)
    return Controller(context)


@pytest.fixture
def engine_id(client: TestClient, database: Database) -> str:
    """An engine that has run a recommendation for a while."""
    engine_id = register(client)
    url = f"/v1/recommendations/{add_recommendation(database)}:apply"
    assert client.post(url, json={"engine_id": engine_id}).status_code == 200
    acknowledge(client, engine_id)
    return engine_id


def policy_of(client: TestClient, engine_id: str) -> Json:
    return dict(client.get(f"/v1/engines/{engine_id}/policy").json())


def origins(client: TestClient, engine_id: str) -> list[str]:
    found = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    return [version["origin"] for version in found]


def guard(client: TestClient, engine_id: str, value: str) -> None:
    etag = client.get(f"/v1/engines/{engine_id}/policy").headers["ETag"]
    answer = client.patch(
        f"/v1/engines/{engine_id}/policy",
        json={"guards": {"on_drift": value}},
        headers={"If-Match": etag},
    )
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)


def change_by_hand(client: TestClient, database: Database, engine_id: str) -> None:
    """A minute after the last version somebody lowers a cap at the engine, which tells so."""
    with database.begin() as uow:
        for row in uow.session.scalars(sa.select(PolicyVersion)):
            if row.acknowledged_at is not None:
                row.acknowledged_at -= timedelta(seconds=60)
    policy = policy_of(client, engine_id)["effective"]
    changed = {**policy, "caps": {**policy["caps"], "max_num_seqs": 7}}
    body = heartbeat_body(arrived=5, policy=changed)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202


def test_it_is_left_alone_by_default(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    before = policy_of(client, engine_id)
    change_by_hand(client, database, engine_id)
    controller.tick()
    after = policy_of(client, engine_id)
    assert (after["version"], after["requested"]) == (before["version"], before["requested"])
    assert after["effective"]["caps"]["max_num_seqs"] == 7


def test_it_becomes_the_policy_where_it_shall_be_adopted(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    guard(client, engine_id, "adopt")
    change_by_hand(client, database, engine_id)
    controller.tick()
    after = policy_of(client, engine_id)
    assert after["requested"]["caps"]["max_num_seqs"] == 7
    assert after["ack_state"] == "applied"
    controller.tick()
    assert origins(client, engine_id).count("adopted") == 2  # with the registration


def test_it_is_put_back_where_it_shall_be_reverted(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    guard(client, engine_id, "revert")
    before = policy_of(client, engine_id)
    change_by_hand(client, database, engine_id)
    controller.tick()
    after = policy_of(client, engine_id)
    assert after["version"] == before["version"] + 1
    assert after["requested"] == before["requested"]
    assert after["ack_state"] == "pending"
    newest = client.get(f"/v1/engines/{engine_id}/policy/versions").json()[0]
    assert "put back" in newest["reason"]
    acknowledge(client, engine_id)
    controller.tick()
    found = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert sum("put back" in version["reason"] for version in found) == 1


def test_another_word_is_refused(client: TestClient, engine_id: str) -> None:
    etag = client.get(f"/v1/engines/{engine_id}/policy").headers["ETag"]
    answer = client.patch(
        f"/v1/engines/{engine_id}/policy",
        json={"guards": {"on_drift": "panic"}},
        headers={"If-Match": etag},
    )
    assert answer.status_code == 422
    assert "pause, adopt, revert" in answer.text
