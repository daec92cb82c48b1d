from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from api.services import overview
from api.services.overview import EngineOverview, Standing
from api.web.settings import ServiceSettings
from engine.spec.settings import Settings
from policies.decision import Action, Reason
from store import Database
from store.models import DecisionRow
from store.models.base import utc_now
from tests.api.worlds import PLAN, acknowledge, heartbeat_body, register

POLICY = Settings(plan=PLAN).to_json()


def look(database: Database, settings: ServiceSettings) -> dict[str, EngineOverview]:
    with database.read() as uow:
        return {one.engine.name: one for one in overview.fleet(uow, settings)}


def beat(client: TestClient, engine_id: str, **changes: object) -> None:
    body = heartbeat_body(arrived=5, policy=POLICY, **changes)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202


def decide(database: Database, engine_id: str, action: Action, reason: Reason) -> None:
    """Keep a decision and a fresh window, as the controller does."""
    window = {"seen_at_s": utc_now().timestamp(), "attainment": 0.5}
    with database.begin() as uow:
        uow.engines.get(engine_id).live_window = window
        uow.decisions.add(
            DecisionRow(engine_id=engine_id, action=action, reason=reason, rejected=[], observed={})
        )


def test_an_engine_shows_its_load_of_the_last_seconds(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client, "east")
    register(client, "west")
    steps = [
        {"mode": "base", "tokens_up_to": 512, "steps": 1, "seconds": 0.3, "tokens": 400},
        {"mode": "shift", "tokens_up_to": 64, "steps": 10, "seconds": 0.1, "tokens": 300},
    ]
    beat(client, engine_id, steps=steps, stats={"running": 3, "waiting": 2, "kv_usage": 0.25})
    found = look(database, settings)
    load = found["east"].load
    assert load is not None
    assert (load.rate_rps, load.running, load.waiting, load.kv_usage) == (5.0, 3, 2, 0.25)
    assert load.mode_share == pytest.approx({"base": 0.75, "shift": 0.25})
    assert found["west"].load is None  # nothing heard is not silence


def test_standing_names_the_worst_that_is_true(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client, "east")
    assert look(database, settings)["east"].standing is Standing.FINE

    path = f"/v1/engines/{engine_id}/policy"
    etag = client.get(path).headers["etag"]
    client.patch(path, json={"caps": {"max_queue": 9}}, headers={"If-Match": etag})
    assert look(database, settings)["east"].standing is Standing.CHANGING
    acknowledge(client, engine_id)

    decide(database, engine_id, Action.HOLD, Reason.SLA_MISSED_AT_TOP)
    assert look(database, settings)["east"].standing is Standing.MISSED
    decide(database, engine_id, Action.RAISE_CONDITION, Reason.SLA_INFEASIBLE)
    found = look(database, settings)["east"]
    assert (found.standing, found.reason) == (Standing.CONDITION, "sla_infeasible")

    beat(client, engine_id, stats={"is_healthy": False})
    assert look(database, settings)["east"].standing is Standing.UNHEALTHY
    client.post(f"/v1/engines/{engine_id}:deregister")
    assert look(database, settings)["east"].standing is Standing.ENDED


def test_a_server_that_was_never_seen_is_silent_until_it_is_forgotten(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    body = {"name": "west", "system": "vllm", "url": "http://127.0.0.1:9", "plan": "tp=1"}
    engine_id = client.post("/v1/engines:observe", json=body).json()["id"]
    found = look(database, settings)["west"]
    assert (found.standing, found.reason) == (Standing.SILENT, "new")
    client.post(f"/v1/engines/{engine_id}:deregister")
    assert look(database, settings)["west"].standing is Standing.ENDED


def test_one_engine_is_told_as_in_the_fleet(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client, "east")
    beat(client, engine_id)
    with database.read() as uow:
        alone = overview.one(uow, engine_id, settings)
    assert alone == look(database, settings)["east"]
