"""Rollouts over real heartbeats in a real database, and what may go wrong meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.control.controller import Controller
from api.documents.policy import model_to_json
from api.services import rollout_moves, rollouts
from api.services.audit import service_caller
from api.web.context import AppContext
from engine.spec.inventory import Inventory, RankKind
from engine.spec.model import DType
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.rollout import RolloutReason
from policies.sla import Sla
from store import ConflictError, Database
from store.models import RolloutState
from tests.api.control.rollout_world import (
    BAD_MS,
    CANDIDATE_SEQS,
    SLA,
    SLICE_S,
    World,
    let_time_pass,
)
from tests.api.worlds import PLAN, add_recommendation, context_of, register
from tests.waiting import wait_until
from tuner.work.models import load_model

Json = dict[str, Any]
DEFAULT_SEQS = 64


@pytest.fixture
def world(client: TestClient, database: Database) -> World:
    return World.of(client, database, Controller(_context(client)))


def _context(client: TestClient) -> AppContext:
    return context_of(client)


def _origins(world: World) -> list[str]:
    """Of the engine's versions, newest first."""
    url = f"/v1/engines/{world.engine_id}/policy/versions"
    return [row["origin"] for row in world.client.get(url).json()]


def _promote_and_die(world: World, rollout_id: str) -> None:
    with world.database.begin() as uow:
        engine = uow.engines.get(world.engine_id, for_update=True)
        rollout_moves.promote(uow, engine, uow.rollouts.get(rollout_id), "killed now")
        raise KeyboardInterrupt


def test_a_candidate_that_is_no_worse_takes_turns_and_then_stays(world: World) -> None:
    """Each turn is made by another service than the one before, as after a kill: all that one knows
    is in the database."""
    world.new_controller = lambda: Controller(_context(world.client))
    before = world.max_num_seqs
    rollout_id = world.begin()
    assert world.max_num_seqs == before, "until the engine is heard of, nothing is asked of it"
    found = world.play(rollout_id)
    assert (found["state"], found["code"]) == ("full", "not_worse")
    assert world.max_num_seqs == CANDIDATE_SEQS
    assert world.requested["provenance"]["rollout"] == rollout_id
    world.acknowledge()
    world.controller.tick()
    found = world.read(rollout_id)
    assert found["state"] == "done"
    assert [turn["state"] for turn in found["transitions"]] == [
        "replaying",
        "canary",
        "full",
        "done",
    ]
    assert found["canary"]["effect"]["low"] > -found["limits"]["tolerance"]
    assert found["canary"]["candidate_attainment"] == 1.0
    assert found["canary"]["exposed_s"] < found["limits"]["max_exposed_s"]
    audit = world.client.get("/v1/audit", params={"resource": f"rollouts/{rollout_id}"}).json()
    assert [entry["action"] for entry in audit] == [
        "rollout.done",
        "rollout.full",
        "rollout.canary",
        "rollout.replaying",
    ]


def test_a_regression_is_rolled_back_as_a_new_version_with_its_numbers(world: World) -> None:
    before = world.max_num_seqs
    rollout_id = world.begin()
    found = world.play(rollout_id, candidate_ms=BAD_MS)
    assert (found["state"], found["code"]) == ("rolled_back", "regression")
    assert found["canary"]["effect"]["high"] < -found["limits"]["tolerance"]
    assert found["canary"]["exposed_s"] <= found["limits"]["max_exposed_s"] / 2
    assert "attainment differs by -1.000" in found["reason"]
    assert world.max_num_seqs == before
    newest = world.client.get(f"/v1/engines/{world.engine_id}/policy/versions").json()[0]
    assert newest["origin"] == "rollback"
    assert newest["document"]["provenance"]["rollout"] == rollout_id
    assert "regression" in newest["reason"]
    metrics = world.client.get("/metrics").text
    assert 'gearshift_rollback_total{reason="rollout"} 1.0' in metrics
    assert 'gearshift_rollouts{state="rolled_back"} 1.0' in metrics


def test_a_service_killed_inside_a_turn_leaves_the_turn_before(world: World) -> None:
    """The policy and the state that goes with it are one commit: half of it is not there."""
    rollout_id = world.begin()
    world.beat()
    before = world.read(rollout_id), world.engine.desired_version
    with pytest.raises(KeyboardInterrupt):
        _promote_and_die(world, rollout_id)
    assert (world.read(rollout_id), world.engine.desired_version) == before


def test_a_rollout_whose_row_cannot_be_read_stops_no_other(world: World) -> None:
    unread, other = world.begin(), World.of(world.client, world.database, world.controller, "other")
    rollout_id = other.begin()
    with world.database.begin() as uow:
        uow.rollouts.get(unread).canary = {"written": "by another version"}
    other.beat()
    world.controller.tick()
    assert other.read(rollout_id)["canary"]["arm"] is not None


def test_a_change_by_hand_wins_and_ends_the_rollout(world: World) -> None:
    rollout_id = world.begin()
    world.beat()
    world.controller.tick()
    world.acknowledge()
    assert world.patch({"caps": {"max_num_seqs": 77}}).status_code == 200
    world.controller.tick()
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("cancelled", "superseded")
    assert "operator" in found["reason"]
    assert world.max_num_seqs == 77
    world.acknowledge()
    world.controller.tick()
    assert world.max_num_seqs == 77
    assert world.start().status_code == 202, "the next one may begin"


def test_who_patches_what_a_slice_has_replaced_meanwhile_is_told(world: World) -> None:
    """Lost update: the policy that was read is not the one in force any more."""
    etag = world.client.get(f"/v1/engines/{world.engine_id}/policy").headers["etag"]
    rollout_id = world.begin_serving(candidate=True)
    answer = world.patch({"caps": {"max_num_seqs": 77}}, etag=etag)
    assert (answer.status_code, answer.json()["code"]) == (412, "stale_policy")
    assert world.read(rollout_id)["state"] == "canary"


def test_a_silent_engine_holds_the_canary_and_the_cap_rolls_it_back(world: World) -> None:
    before = world.max_num_seqs
    rollout_id = world.begin_serving(candidate=True, limits={"max_exposed_s": 120.0})
    world.acknowledge()
    pairs = world.read(rollout_id)["canary"]["pairs"]
    let_time_pass(world.database, SLICE_S + 60.0)  # nothing was heard of it
    version = world.engine.desired_version
    world.controller.tick()
    assert world.engine.desired_version == version, "without data nothing is switched"
    let_time_pass(world.database, 60.0)
    world.controller.tick()
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("rolled_back", "exposure_cap")
    assert found["is_undecided"]
    assert found["canary"]["pairs"] == pairs
    assert world.max_num_seqs == before


def test_a_candidate_that_the_engine_refuses_is_rolled_back(world: World) -> None:
    rollout_id = world.begin_serving(candidate=True)
    running = world.engine.effective_policy
    world.acknowledge(result="refused", message="no room", policy=running)
    world.controller.tick()
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("rolled_back", "engine_refused")
    assert "no room" in found["reason"]
    assert world.max_num_seqs == DEFAULT_SEQS


@pytest.mark.slow
def test_rolling_back_by_hand_goes_to_what_ran_before_the_rollout(world: World) -> None:
    """Not to the slice before, which may be the candidate's."""
    before = world.max_num_seqs
    rollout_id = world.begin()
    world.beat()
    world.controller.tick()
    arms = set()
    while len(arms) < 2:
        arms.add(world.is_candidate)
        world.turn()
    world.acknowledge()
    answer = world.client.post(f"/v1/engines/{world.engine_id}:rollback", json={})
    assert answer.status_code == 200, answer.text
    assert world.max_num_seqs == before
    world.controller.tick()
    assert world.read(rollout_id)["code"] == "superseded"


def test_the_end_of_a_rollout_of_very_many_pairs_is_told(world: World) -> None:
    rollout_id = world.begin()
    with world.database.begin() as uow:
        for number in range(600):
            uow.rollouts.append_event(uow.rollouts.get(rollout_id), "pair", {"pair": number})
    answer = world.client.post(f"/v1/rollouts/{rollout_id}:cancel")
    assert answer.status_code == 202
    assert world.read(rollout_id)["transitions"][-1]["state"] == "cancelled"


def test_cancelling_asks_for_what_ran_before_and_twice_is_as_once(world: World) -> None:
    before = world.max_num_seqs
    rollout_id = world.begin_serving(candidate=True)
    for _ in range(2):
        answer = world.client.post(f"/v1/rollouts/{rollout_id}:cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert world.max_num_seqs == before
    assert _origins(world)[0] == "rollback"
    version = world.engine.desired_version
    world.controller.tick()
    assert world.engine.desired_version == version


@pytest.mark.slow
def test_who_cancels_what_has_just_ended_is_told_so_and_ends_nothing(world: World) -> None:
    rollout_id = world.begin_serving(candidate=True)
    refusals: list[Exception] = []

    def cancel() -> None:
        try:
            with world.database.begin() as uow:
                rollouts.cancel(uow, rollout_id, caller=service_caller("test"))
        except ConflictError as error:
            refusals.append(error)

    canceller = threading.Thread(target=cancel)
    with world.database.begin() as uow:
        engine = uow.engines.get(world.engine_id, for_update=True)
        canceller.start()
        time.sleep(0.3)  # by now it waits for the engine
        worse = (RolloutState.ROLLED_BACK, RolloutReason.REGRESSION, "worse")
        rollout_moves.end(uow, engine, uow.rollouts.get(rollout_id), *worse)
    canceller.join()
    assert "is rolled_back: worse" in str(refusals[0])
    assert world.read(rollout_id)["code"] == "regression"


def test_a_restart_of_the_engine_in_a_slice_makes_its_pair_say_nothing(world: World) -> None:
    rollout_id = world.begin()
    world.beat()
    world.controller.tick()
    world.acknowledge()
    let_time_pass(world.database, SLICE_S)
    register(world.client)
    world.acknowledge()
    world.beat()
    world.controller.tick()
    for _ in range(4):
        world.turn()
    assert world.read(rollout_id)["canary"]["set_aside"] == 1


def test_the_controller_leaves_settings_that_are_compared_alone(
    world: World, database: Database
) -> None:
    found = add_recommendation(database)
    url = f"/v1/recommendations/{found}:apply"
    assert world.client.post(url, json={"engine_id": world.engine_id}).status_code == 200
    world.acknowledge()
    world.begin()
    world.beat(arrived=200, window_s=10.0)
    world.controller.tick()
    assert world.client.get("/v1/decisions").json() == []


@pytest.mark.slow
def test_more_load_than_the_plan_carries_ends_the_rollout_for_capacity_to_follow(
    world: World,
) -> None:
    entry = CarriedRate(settings=Settings(plan=PLAN), rate_rps=2.0, low_rps=2.0, high_rps=2.0)
    table = CapacityTable(
        sla=Sla.parse(SLA), mean_input_tokens=64.0, mean_output_tokens=3.0, entries=(entry,)
    )
    rollout_id = world.begin()
    world.beat(arrived=50, window_s=10.0)
    world.controller.tick()
    world.acknowledge()
    with world.database.begin() as uow:
        uow.engines.get(world.engine_id).capacity_table = table.to_json()
    world.controller.tick()
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("rolled_back", "load_above_capacity")
    assert found["is_undecided"]
    counted = world.client.get("/metrics").text
    assert 'gearshift_rollback_total{reason="undecided"} 1.0' in counted
    assert 'gearshift_rollback_total{reason="rollout"} 0.0' in counted
    assert _origins(world)[0] == "rollback"


@pytest.mark.slow
def test_a_candidate_that_can_be_no_more_after_a_restart_is_given_up(world: World) -> None:
    rollout_id = world.begin()
    small = {"max_num_seqs": DEFAULT_SEQS, "max_num_batched_tokens": 8192}
    let_time_pass(world.database, 60.0)
    register(world.client, envelope=small)
    world.acknowledge()
    world.beat()
    world.controller.tick()
    while world.read(rollout_id)["state"] == "canary":
        world.turn()
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("rolled_back", "impossible")
    assert "96 is above the 64" in found["reason"]
    assert world.max_num_seqs == DEFAULT_SEQS


@pytest.mark.slow
def test_the_replay_refuses_what_starves_requests_before_it_serves_anybody(world: World) -> None:
    with world.database.begin() as uow:
        engine = uow.engines.get(world.engine_id)
        engine.model = model_to_json(load_model("llama-3.1-8b"))
        inventory = Inventory(kind=RankKind.PACED, max_ranks=2, dtype=DType.BFLOAT16)
        engine.inventory = inventory.to_json()
    for _ in range(20):
        world.beat(arrived=30, window_s=3.0)
        let_time_pass(world.database, 3.0)
    world.beat(arrived=30, window_s=3.0)
    answer = world.start(
        patch={"caps": {"max_num_seqs": 1}, "sla": "p95_ttft_ms<=100"},
        replay={"hardware": "2xh100"},
    )
    rollout_id = answer.json()["id"]
    world.controller.tick()

    def is_over() -> bool:
        world.controller.tick()
        return bool(world.read(rollout_id)["state"] != "replaying")

    wait_until(is_over)
    found = world.read(rollout_id)
    assert (found["state"], found["code"]) == ("refused", "replay_worse"), found["reason"]
    assert found["verdict"]["effect"]["high"] < -0.02
    assert _origins(world)[0] == "operator", "nothing was asked of the engine"
