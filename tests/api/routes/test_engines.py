"""Engines over REST: registration, heartbeats, devices."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from api.documents.policy import model_to_json
from api.schemas.serving import EngineRegister, HeartbeatIn
from api.services import engines, heartbeats
from api.services.audit import service_caller
from api.services.heartbeats import Beat
from api.web.settings import ServiceSettings
from engine.spec.inventory import Inventory, RankKind
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from store import Database
from store.models.base import utc_now
from tests.api.worlds import (
    acknowledge,
    add_recommendation,
    engine_body,
    heartbeat_body,
    register,
)
from tests.models import MODEL
from tests.waiting import wait_until


def test_a_registered_engines_policy_is_version_one_and_in_force(client: TestClient) -> None:
    engine_id = register(client)
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["desired_version"], engine["applied_version"]) == (1, 1)
    assert engine["is_alive"]
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    assert policy["requested"]["schema"] == "policy/v1"
    assert policy["requested"]["engine"] == engine_id
    assert policy["requested"]["plan"] == {"dp": 1, "pp": 1, "sp": 2, "tp": 1}
    assert policy["effective"] == engine_body()["policy"]


def test_the_same_name_is_the_same_engine_and_is_asked_to_run_its_policy_again(
    client: TestClient,
) -> None:
    engine_id = register(client)
    client.post(f"/v1/engines/{engine_id}:deregister")
    assert register(client) == engine_id
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["desired_version"], engine["applied_version"]) == (1, 0)
    assert len(client.get("/v1/engines").json()) == 1


def test_an_engine_that_comes_back_with_another_model_is_not_asked_for_the_policy_of_the_old_one(
    client: TestClient, database: Database
) -> None:
    engine_id = register(client)
    tuned = add_recommendation(database)
    client.post(f"/v1/recommendations/{tuned}:apply", json={"engine_id": engine_id})
    acknowledge(client, engine_id)
    client.post(f"/v1/engines/{engine_id}:deregister")
    larger = model_to_json(replace(MODEL, num_layers=4))
    assert register(client, model=larger) == engine_id
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["desired_version"], engine["applied_version"]) == (3, 3)
    assert (engine["recommendation_id"], engine["sla"]) == (None, "p95_ttft_ms<=500")
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()["requested"]
    assert policy["caps"] == engine_body()["policy"]["caps"]
    assert policy["provenance"] == {"other_model": "num_layers 4, not 2"}
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert versions[0]["reason"] == "it serves another model now: num_layers 4, not 2"
    back = client.post(f"/v1/engines/{engine_id}:rollback", json={})
    assert back.status_code == 409, "the versions before were for the old model"


def test_a_policy_that_cannot_be_read_is_422(client: TestClient) -> None:
    answer = client.post("/v1/engines", json=engine_body(policy={"colour": 1}))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/colour")


def test_an_envelope_that_cannot_be_read_is_422(client: TestClient) -> None:
    answer = client.post("/v1/engines", json=engine_body(envelope={"max_speed": 1}))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/envelope")


def test_a_heartbeat_is_kept_exactly_and_tells_the_version_asked_for(
    client: TestClient, database: Database
) -> None:
    engine_id = register(client)
    body = heartbeat_body(arrived=2, policy=engine_body()["policy"])
    answer = client.post(f"/v1/engines/{engine_id}/heartbeats", json=body)
    assert (answer.status_code, answer.json()) == (202, {"desired_version": 1})
    with database.read() as uow:
        since = utc_now() - timedelta(minutes=1)
        (kept,) = uow.engines.list_heartbeats(engine_id, since=since)
    assert kept.requests == body["requests"]
    assert (kept.window_s, kept.arrived) == (1.0, 2)


def test_a_heartbeat_is_the_same_by_the_short_way_and_by_the_frameworks(
    client: TestClient, database: Database
) -> None:
    """Only plain JSON takes the short way (``api.routes.quick_heartbeats``)."""
    engine_id = register(client)
    path = f"/v1/engines/{engine_id}/heartbeats"
    body = heartbeat_body(arrived=2, policy=engine_body()["policy"])
    answers = [
        client.post(path, content=json.dumps(body), headers={"Content-Type": kind})
        for kind in ("application/json", "application/vnd.beat+json")
    ]
    assert {(it.status_code, it.text, it.headers["content-type"]) for it in answers} == {
        (202, '{"desired_version":1}', "application/json")
    }
    with database.read() as uow:
        kept = uow.engines.list_heartbeats(engine_id, since=utc_now() - timedelta(minutes=1))
    columns = ("window_s", "arrived", "stats", "requests", "steps")
    first, second = ([getattr(row, name) for name in columns] for row in kept)
    assert first == second


def test_a_heartbeat_of_an_unknown_engine_is_404_so_that_it_registers_again(
    client: TestClient,
) -> None:
    body = heartbeat_body(arrived=0, policy=engine_body()["policy"])
    assert client.post("/v1/engines/eng_none/heartbeats", json=body).status_code == 404


def test_a_name_in_the_place_of_an_id_is_404_with_the_id(client: TestClient) -> None:
    engine_id = register(client, "chat")
    answer = client.get("/v1/engines/chat")
    assert answer.status_code == 404
    assert f"the id of the engine with this name is {engine_id}" in answer.json()["detail"]
    assert "this name" not in client.get("/v1/engines/chatty").json()["detail"]


def test_heartbeats_that_come_together_are_kept_or_refused_each_by_itself(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    """They share a transaction; a forged, an unknown and an impossible one spoil none."""
    small = Settings(plan=ParallelPlan(tp=1)).to_json()
    ids = [register(client, f"e{n}", policy=small, devices=[n % 4]) for n in range(4)]
    keeper = _keeper(client, name="keeper").json()["id"]
    impossible = {**small, "plan": {"dp": 10**9}}
    senders = [*((engine_id, small) for engine_id in ids), ("eng_none", small)]
    senders += [(keeper, small), (ids[0], impossible)]

    def send(sender: tuple[str, Any]) -> int:
        engine_id, policy = sender
        body = heartbeat_body(arrived=1, policy=policy)
        return client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code

    with ThreadPoolExecutor(len(senders)) as pool:
        for _ in range(3):
            assert list(pool.map(send, senders)) == [202] * 4 + [404, 403, 422]
    with database.read() as uow:
        since = utc_now() - timedelta(minutes=1)
        kept = [len(uow.engines.list_heartbeats(it, since=since)) for it in (*ids, keeper)]
        assert len(uow.devices.list_leases(settings.node)) == 4
    assert kept == [3, 3, 3, 3, 0]


def test_capabilities_are_those_the_engine_reported(client: TestClient) -> None:
    engine_id = register(client)
    answer = client.get(f"/v1/engines/{engine_id}/capabilities").json()
    assert answer == engine_body()["capabilities"]


def test_an_engine_holds_as_many_devices_as_its_plan_has_ranks(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    register(client, "a")
    register(client, "b", policy=Settings(plan=ParallelPlan(tp=1)).to_json())
    with database.read() as uow:
        leases = uow.devices.list_leases(settings.node)
    holders = [lease.holder for lease in leases]
    assert [lease.device for lease in leases] == [0, 1, 2]
    assert len(set(holders)) == 2
    assert holders[0] == holders[1]


def test_a_paced_engine_holds_no_device(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client, devices=[])
    body = heartbeat_body(arrived=0, policy=engine_body()["policy"], devices=[])
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202
    with database.read() as uow:
        assert uow.devices.list_leases(settings.node) == []


def test_a_reshape_to_fewer_ranks_frees_devices(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client)
    small = Settings(plan=ParallelPlan(tp=1)).to_json()
    client.post(f"/v1/engines/{engine_id}/heartbeats", json=heartbeat_body(arrived=0, policy=small))
    with database.read() as uow:
        assert len(uow.devices.list_leases(settings.node)) == 1


def test_an_engine_that_ends_frees_its_devices_and_keeps_its_history(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = register(client)
    assert client.post(f"/v1/engines/{engine_id}:deregister").status_code == 204
    with database.read() as uow:
        assert uow.devices.list_leases(settings.node) == []
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert not engine["is_alive"]
    acknowledge(client, engine_id)


def test_a_heartbeat_or_acknowledgement_with_a_plan_nobody_has_devices_for_is_refused(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    """Each used to make lists of as many devices, until the service was out of memory."""
    engine_id = register(client)
    policy = {**engine_body()["policy"], "plan": {"dp": 10**9}, "shift": {"enabled": False}}
    beat = client.post(
        f"/v1/engines/{engine_id}/heartbeats", json=heartbeat_body(arrived=0, policy=policy)
    )
    said = client.post(
        f"/v1/engines/{engine_id}/policy/versions/1:acknowledge",
        json={"result": "refused", "policy": policy},
    )
    again = client.post("/v1/engines", json=engine_body(policy=policy))
    for answer in (beat, said, again):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/policy/plan"
        assert "needs 1000000000 devices, this engine has 1024" in answer.json()["detail"]
    with database.read() as uow:
        assert len(uow.devices.list_leases(settings.node)) == 2
    assert client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]["plan"]["dp"] == 1


def test_a_registration_beyond_its_own_inventory_is_refused(client: TestClient) -> None:
    inventory = Inventory(kind=RankKind.CPU, max_ranks=1).to_json()
    answer = client.post("/v1/engines", json=engine_body(inventory=inventory))
    assert answer.status_code == 422
    assert "needs 2 devices, this engine has 1" in answer.json()["detail"]
    odd = client.post("/v1/engines", json=engine_body(inventory={**inventory, "max_ranks": 0}))
    assert (odd.status_code, odd.json()["errors"][0]["pointer"]) == (422, "/inventory")
    assert client.get("/v1/engines").json() == []


def _keeper(client: TestClient, credential: str | None = None, **changes: Any) -> Any:
    """Register an engine that keeps its credential."""
    body = engine_body(takes_credential=True, **changes)
    return client.post("/v1/engines", json=body, headers=_proof(credential))


def _proof(credential: str | None) -> dict[str, str]:
    return {} if credential is None else {"Gearshift-Engine-Credential": credential}


def test_the_name_of_a_live_engine_is_refused_and_that_engine_is_left_as_it_is(
    client: TestClient,
) -> None:
    first = _keeper(client).json()
    small = Settings(plan=ParallelPlan(tp=1)).to_json()
    for credential in (None, "ge_forged"):
        answer = _keeper(client, credential, policy=small, host="elsewhere")
        assert (answer.status_code, answer.json()["code"]) == (409, "name_in_use")
        assert first["id"] in answer.json()["detail"]
    now = client.get(f"/v1/engines/{first['id']}").json()
    assert (now["host"], now["effective_policy"]) == ("node-1", engine_body()["policy"])


def test_only_the_engine_itself_beats_acknowledges_and_ends(
    client: TestClient, database: Database
) -> None:
    first, other = _keeper(client).json(), _keeper(client, name="other").json()
    url = f"/v1/engines/{first['id']}"
    calls = (
        (f"{url}/heartbeats", heartbeat_body(arrived=0, policy=engine_body()["policy"])),
        (
            f"{url}/policy/versions/1:acknowledge",
            {"result": "applied", "policy": engine_body()["policy"]},
        ),
        (f"{url}:deregister", None),
    )
    for path, body in calls:
        for credential in (None, other["credential"], "ge_forged"):
            answer = client.post(path, json=body, headers=_proof(credential))
            assert (answer.status_code, answer.json()["code"]) == (403, "not_this_engine")
        assert client.post(path, json=body, headers=_proof(first["credential"])).is_success
    with database.read() as uow:
        kept = uow.engines.get(first["id"]).credential_hash
    assert kept is not None
    assert first["credential"] not in kept


def test_an_engine_that_shows_its_credential_takes_its_own_name_at_once(
    client: TestClient,
) -> None:
    first = _keeper(client).json()
    again = _keeper(client, first["credential"])
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.json()["credential"] is None
    body = heartbeat_body(arrived=0, policy=engine_body()["policy"])
    url = f"/v1/engines/{first['id']}/heartbeats"
    assert client.post(url, json=body, headers=_proof(first["credential"])).status_code == 202


def test_a_name_is_free_once_its_engine_is_silent_and_the_old_credential_is_void(
    client: TestClient, database: Database
) -> None:
    first = _keeper(client).json()
    with database.begin() as uow:
        uow.engines.get(first["id"]).last_heartbeat_at = utc_now() - timedelta(minutes=1)
    second = _keeper(client).json()
    assert second["id"] == first["id"]
    body = heartbeat_body(arrived=0, policy=engine_body()["policy"])
    url = f"/v1/engines/{first['id']}/heartbeats"
    assert client.post(url, json=body, headers=_proof(first["credential"])).status_code == 403
    poll = client.get(f"/v1/engines/{first['id']}/policy", headers=_proof(first["credential"]))
    assert poll.status_code == 403
    assert client.post(url, json=body, headers=_proof(second["credential"])).status_code == 202


def test_an_engine_that_was_killed_is_called_ended_by_whoever_may_apply(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine = _keeper(client).json()
    end = f"/v1/engines/{engine['id']}:deregister"
    assert client.post(end).status_code == 403
    _silence(database, engine["id"])
    assert client.post(end).status_code == 204
    assert client.get(f"/v1/engines/{engine['id']}").json()["last_heartbeat_at"] is None
    with database.read() as uow:
        assert uow.devices.list_leases(settings.node) == []


@pytest.mark.parametrize("service_url", ["postgresql"], indirect=True)  # SQLite has one writer
def test_who_ends_a_silent_engine_does_not_end_whoever_takes_its_name_at_that_moment(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    engine_id = _keeper(client).json()["id"]
    _silence(database, engine_id)
    body = EngineRegister.model_validate(engine_body(takes_credential=True))
    by = service_caller("test")
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as uow:
            engines.register(uow, body, settings, credential=None, caller=by)
            ended = pool.submit(client.post, f"/v1/engines/{engine_id}:deregister")
            wait_until(lambda: ended.done() or _num_waiting(database))
        assert ended.result().status_code == 403
    assert client.get(f"/v1/engines/{engine_id}").json()["is_alive"]
    with database.read() as uow:
        assert [it.device for it in uow.devices.list_leases(settings.node)] == [0, 1]


@pytest.mark.parametrize("service_url", ["postgresql"], indirect=True)
def test_of_two_that_register_a_new_name_at_once_one_is_told_that_it_is_taken(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    body = EngineRegister.model_validate(engine_body(takes_credential=True))
    by = service_caller("test")
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as uow:
            engines.register(uow, body, settings, credential=None, caller=by)
            second = pool.submit(_keeper, client)
            wait_until(lambda: second.done() or _num_waiting(database))
        assert second.result().status_code == 409
    assert len(client.get("/v1/engines").json()) == 1


@pytest.mark.parametrize("service_url", ["postgresql"], indirect=True)
def test_heartbeats_of_several_engines_and_who_holds_these_do_not_wait_for_one_another_in_a_circle(
    client: TestClient, database: Database, settings: ServiceSettings
) -> None:
    """A database that looks through its rows as they lie finds the one changed last at the end."""
    first, second = sorted(register(client, name, devices=[]) for name in ("one", "two"))
    policy = engine_body()["policy"]
    client.post(f"/v1/engines/{first}/heartbeats", json=heartbeat_body(arrived=0, policy=policy))
    body = HeartbeatIn.model_validate(heartbeat_body(arrived=1, policy=policy))

    def keep() -> list[Any]:
        beats = [Beat(engine_id=it, body=body, credential=None) for it in (second, first)]
        with database.begin() as uow:
            return heartbeats.keep(uow, beats, settings)

    with ThreadPoolExecutor(1) as pool:
        with database.begin() as uow:
            uow.engines.hold([first])
            kept = pool.submit(keep)
            wait_until(lambda: kept.done() or _num_waiting(database))
            uow.engines.hold([first, second])
        assert [answer.desired_version for answer in kept.result()] == [1, 1]


def _silence(database: Database, engine_id: str) -> None:
    with database.begin() as uow:
        uow.engines.get(engine_id).last_heartbeat_at = utc_now() - timedelta(minutes=1)


def _num_waiting(database: Database) -> int:
    """Who waits for a lock in the whole cluster."""
    with database.read() as uow:
        return int(uow.session.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_an_engine_of_an_earlier_version_goes_on_without_a_credential(client: TestClient) -> None:
    answer = client.post("/v1/engines", json=engine_body())
    assert answer.json()["credential"] is None
    body = heartbeat_body(arrived=0, policy=engine_body()["policy"])
    beat = client.post(f"/v1/engines/{answer.json()['id']}/heartbeats", json=body)
    assert beat.status_code == 202
    acknowledge(client, answer.json()["id"])
