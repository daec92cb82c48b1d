"""An engine under the control of a schedule, over REST."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from store import Database
from tests.api.worlds import acknowledge, add_recommendation, heartbeat_body, register


def scheduled(client: TestClient, database: Database, name: str = "chat") -> str:
    """An engine that runs a recommendation with a schedule."""
    engine_id = register(client, name)
    url = f"/v1/recommendations/{add_recommendation(database)}:apply"
    assert client.post(url, json={"engine_id": engine_id}).status_code == 200
    acknowledge(client, engine_id)
    return engine_id


def beat(client: TestClient, engine_id: str, arrived: int, **changes: Any) -> None:
    """A heartbeat of one second, in which so many requests came."""
    policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    body = heartbeat_body(arrived=arrived, policy=policy, **changes)
    answer = client.post(f"/v1/engines/{engine_id}/heartbeats", json=body)
    assert answer.status_code == 202, answer.text


def decisions(client: TestClient, engine_id: str) -> list[tuple[str, str]]:
    """Actions and reasons, newest first."""
    found = client.get("/v1/decisions", params={"engine_id": engine_id}).json()
    return [(d["action"], d["reason"]) for d in found]
