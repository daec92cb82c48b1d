"""``/v1/rollouts``: what is accepted, what is refused and why, and how it is followed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.control.controller import Controller
from api.schemas.rollouts import RolloutLimitsIn
from policies.rollout import FEW_REQUESTS
from store import Database
from tests.api.control.rollout_world import CANDIDATE_SEQS, World
from tests.api.worlds import add_recommendation, context_of
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.step_model.fit import fit_step_model

Json = dict[str, Any]


@pytest.fixture
def world(client: TestClient, database: Database) -> World:
    return World.of(client, database, Controller(context_of(client)))


def test_a_rollout_is_accepted_with_its_location_and_found_in_lists(world: World) -> None:
    answer = world.start(reason="room for the evening")
    rollout = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/rollouts/{rollout['id']}"
    assert (rollout["state"], rollout["reason"]) == ("replaying", "room for the evening")
    assert rollout["candidate"]["caps"]["max_num_seqs"] == CANDIDATE_SEQS
    for params in ({}, {"engine_id": world.engine_id}, {"state": "replaying"}):
        listed = world.client.get("/v1/rollouts", params=params).json()
        assert [row["id"] for row in listed] == [rollout["id"]]
    assert world.client.get("/v1/rollouts", params={"state": "done"}).json() == []


def test_a_cap_that_is_named_holds_however_few_requests_come() -> None:
    assert RolloutLimitsIn().limits.few_requests == FEW_REQUESTS
    assert RolloutLimitsIn(max_exposed_s=600.0).limits.few_requests == 0
    assert RolloutLimitsIn(max_exposed_s=600.0, few_requests=50).limits.few_requests == 50


def test_the_same_key_gives_the_first_answer_again(world: World) -> None:
    body = {
        "engine_id": world.engine_id,
        "patch": {"caps": {"max_num_seqs": CANDIDATE_SEQS}},
        "replay": {"skip": True},
    }
    first, second = (
        world.client.post("/v1/rollouts", json=body, headers={"Idempotency-Key": "k1"})
        for _ in range(2)
    )
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"


def test_an_engine_has_one_rollout_at_a_time(world: World) -> None:
    first = world.start().json()["id"]
    answer = world.start()
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout_under_way")
    assert first in answer.json()["detail"]


REFUSED = (
    ({"engine_id": "eng_none"}, 404, "not_found"),
    ({"patch": {"caps": {"max_num_seqs": 64}}}, 409, "nothing_to_compare"),
    ({"patch": {"caps": {"max_num_seqs": 4096}}}, 409, "outside_envelope"),
    ({"patch": {"plan": {"tp": 2}}}, 409, "not_hot"),
    ({"patch": {"plan": {"dp": 2}}}, 409, "not_hot"),
    ({"patch": {"caps": {"max_num_seq": 3}}}, 422, "invalid_policy"),
    ({"patch": {"sla": None, "caps": {"max_num_seqs": 9}}}, 409, "no_sla"),
    ({"recommendation_id": "rec_1"}, 422, "invalid_request"),
    ({"patch": None}, 422, "invalid_request"),
    ({"replay": {}}, 409, "no_step_times"),
    ({"replay": {"hardware": "9xabacus"}}, 422, "invalid_value"),
    ({"replay": {"cost_model_id": "cm_none"}}, 404, "not_found"),
    ({"limits": {"slice_s": 60.0, "max_exposed_s": 30.0}}, 422, "invalid_value"),
    ({"limits": {"slice_s": 0}}, 422, "invalid_request"),
)


def test_what_cannot_be_rolled_out_is_refused_with_the_reason(world: World) -> None:
    for changes, status, code in REFUSED:
        answer = world.start(**changes)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert world.client.get("/v1/rollouts").json() == []


def test_steps_are_replayed_as_slow_as_the_recommendation_in_force_took_them_to_be(
    world: World, database: Database
) -> None:
    spec = {"model_dir": "llama-3.1-8b", "hardware": "8xh200", "options": {"step_scale": 1.5}}
    found = add_recommendation(database, **spec)
    url = f"/v1/recommendations/{found}:apply"
    assert world.client.post(url, json={"engine_id": world.engine_id}).status_code == 200
    world.acknowledge()
    replay = world.start(replay={}).json()["replay"]
    assert replay == {"hardware": "8xh200", "step_scale": 1.5}


def test_step_times_of_other_weights_than_the_engine_holds_are_refused(
    world: World, database: Database
) -> None:
    fitted = fit_step_model(made_up_profile(), SMALL).to_json()
    document = json.loads(json.dumps(fitted, default=dataclasses.asdict))
    with database.begin() as uow:
        ids = {
            weights: uow.cost_models.add(
                fingerprint="here", document={**document, "weights": weights}, created_by="key_test"
            ).id
            for weights in ("int8", "plain")
        }
    answer = world.start(replay={"cost_model_id": ids["int8"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_step_times")
    assert "profiled with int8 weights, and this engine's are plain" in answer.json()["detail"]
    assert "replay.cost_model_id" in answer.json()["detail"]
    assert world.start(replay={"cost_model_id": ids["plain"]}).status_code == 202


def test_while_a_change_is_on_its_way_no_rollout_begins(world: World) -> None:
    assert world.patch({"caps": {"max_num_seqs": 50}}).status_code == 200
    answer = world.start()
    assert (answer.status_code, answer.json()["code"]) == (409, "change_under_way")


@pytest.mark.slow
def test_a_recommendation_brings_its_sla_and_schedule(world: World, database: Database) -> None:
    assert world.patch({"caps": {"max_num_seqs": 50}}).status_code == 200
    world.acknowledge()
    found = add_recommendation(database)
    answer = world.start(patch=None, recommendation_id=found)
    assert answer.status_code == 202, answer.text
    assert answer.json()["candidate"]["provenance"]["recommendation"] == found
    world.controller.tick()
    assert world.play(answer.json()["id"])["state"] == "full"
    world.acknowledge()
    engine = world.client.get(f"/v1/engines/{world.engine_id}").json()
    assert engine["recommendation_id"] == found


def test_events_tell_how_it_ended_are_resumed_and_the_end_is_final(world: World) -> None:
    rollout_id = world.begin()
    world.play(rollout_id, candidate_ms=900.0)
    url = f"/v1/rollouts/{rollout_id}/events"
    text = world.client.get(url).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line[:6] == "event:"]
    assert kinds[:3] == ["state", "state", "pair"]
    assert kinds[-1] == "state"
    rest = world.client.get(url, headers={"Last-Event-ID": str(len(kinds) - 1)}).text
    assert rest.count("event: ") == 1
    assert "rolled_back" in rest
    assert world.client.get("/v1/rollouts/ro_none/events").status_code == 404
    answer = world.client.post(f"/v1/rollouts/{rollout_id}:cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert world.client.post("/v1/rollouts/ro_none:cancel").status_code == 404


def test_only_who_may_apply_starts_and_cancels(world: World) -> None:
    made = world.client.post("/v1/api-keys", json={"name": "r", "scopes": ["tune"]}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    rollout_id = world.start().json()["id"]
    assert world.client.get(f"/v1/rollouts/{rollout_id}", headers=headers).status_code == 200
    for path in ("/v1/rollouts", f"/v1/rollouts/{rollout_id}:cancel"):
        body = {"engine_id": world.engine_id, "patch": {}}
        assert world.client.post(path, json=body, headers=headers).status_code == 403
