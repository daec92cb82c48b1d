"""The slow loop over real heartbeats in a real database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from api.control.capacity import Sight, is_short
from api.control.controller import Controller
from api.documents.control_state import (
    capacity_from_json,
    capacity_to_json,
    look_at,
    observe,
    queue_of,
)
from engine.spec.inventory import Inventory, RankKind
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.busy_rate import BusyRate
from policies.capacity_state import CapacityMemory
from policies.capacity_table import CapacityTable, CarriedRate
from policies.sla import Sla
from store import Database
from store.models import EngineLoad, EngineRow, Heartbeat
from store.models.base import utc_now
from tests.api.worlds import (
    acknowledge,
    context_of,
    heartbeat_body,
    recommendation_document,
    register,
    require_no_failure,
    shift_loads,
)

Json = dict[str, Any]
SLA = "p95_ttft_ms<=500"
# The requests of heartbeat_body.
MIX = (64.0, 3.0)
RATE_OF_ONE_RPS = 10.0
DEVICES = 3


def settings_of(replicas: int) -> Settings:
    return Settings(plan=ParallelPlan(dp=replicas), caps=Caps(max_num_seqs=64))


def capacity_table() -> CapacityTable:
    entries = tuple(
        CarriedRate(settings=settings_of(n), rate_rps=rate, low_rps=rate, high_rps=rate)
        for n, rate in ((n, n * RATE_OF_ONE_RPS) for n in (1, 2, 3, 4))
    )
    return CapacityTable(
        sla=Sla.parse(SLA),
        mean_input_tokens=MIX[0],
        mean_output_tokens=MIX[1],
        entries=entries,
    )


@pytest.fixture
def controller(client: TestClient) -> Iterator[Controller]:
    context = context_of(client)
    yield Controller(context)
    require_no_failure(client)


@pytest.fixture
def engine_id(client: TestClient, database: Database) -> str:
    """An engine of one replica and three devices that runs a recommendation with a table."""
    inventory = Inventory(kind=RankKind.CPU, max_ranks=DEVICES)
    body = {
        "policy": settings_of(1).to_json(),
        "inventory": inventory.to_json(),
        "capabilities": [{"name": "admission.rate_rps", "class": "hot"}],
    }
    engine_id = register(client, **body)
    document = recommendation_document() | {
        "settings": settings_of(1).to_json(),
        "capacity_table": capacity_table().to_json(),
    }
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_test")
        found = uow.recommendations.add(
            job_id=job.id,
            cost_model_id=None,
            sla=SLA,
            document=document,
            schedule=None,
            warnings=[],
        ).id
    answer = client.post(f"/v1/recommendations/{found}:apply", json={"engine_id": engine_id})
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)
    return engine_id


def beat(client: TestClient, engine_id: str, arrived: int, **changes: Any) -> None:
    policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    body = heartbeat_body(arrived=arrived, policy=policy, **changes)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202


def let_time_pass(database: Database, seconds: float) -> None:
    """As if all that happened had happened so much earlier."""
    with database.begin() as uow:
        for row in uow.session.scalars(sa.select(Heartbeat)):
            row.received_at -= timedelta(seconds=seconds)
        shift_loads(uow, -int(seconds))
        for engine in uow.session.scalars(sa.select(EngineRow)):
            if engine.capacity_memory is None:
                continue
            memory = dict(engine.capacity_memory)
            for name in ("look_s", "overloaded_s", "decided_s", "flooded_s"):
                if memory.get(name) is not None:
                    memory[name] -= seconds
            memory["enough_since_s"] = [
                None if at_s is None else at_s - seconds for at_s in memory["enough_since_s"]
            ]
            surge = dict(memory["surge"])
            for name in ("read_s", "alarmed_s"):
                if surge[name] is not None:
                    surge[name] -= seconds
            memory["surge"] = surge
            memory["changes_s"] = [at_s - seconds for at_s in memory["changes_s"]]
            if (since_s := memory["shedding"]["calm_since_s"]) is not None:
                memory["shedding"] = {**memory["shedding"], "calm_since_s": since_s - seconds}
            engine.capacity_memory = memory


def replicas(client: TestClient, engine_id: str) -> int:
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    return int(policy["requested"]["plan"]["dp"])


def reasons(client: TestClient, engine_id: str) -> list[str]:
    found = client.get("/v1/decisions", params={"engine_id": engine_id}).json()
    return [decision["reason"] for decision in found]


def test_more_load_adds_replicas_and_less_gives_them_back(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 15)
    controller.tick()
    assert replicas(client, engine_id) == 2
    assert reasons(client, engine_id) == ["capacity_load_up"]
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert versions[0]["origin"] == "controller"
    assert "load_up: " in versions[0]["reason"]
    acknowledge(client, engine_id)
    for _ in range(24):  # as long as a load is waited for of which nothing is known
        let_time_pass(database, 60.0)
        beat(client, engine_id, 2)
        controller.tick()
    assert replicas(client, engine_id) == 1
    assert reasons(client, engine_id)[:2] == ["capacity_load_down", "capacity_dwell"]


def test_a_rise_does_not_wait_for_the_next_turn(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    """After a decision the next turn is minutes away; twice what is carried is acted on within
    some heartbeats, of a second each."""
    beat(client, engine_id, 8)
    controller.tick()
    assert replicas(client, engine_id) == 1
    for _ in range(3):
        let_time_pass(database, 5.0)
        beat(client, engine_id, 25)
        controller.tick()
    assert replicas(client, engine_id) > 1
    assert reasons(client, engine_id)[0] == "capacity_load_up"


def test_what_arrived_is_kept_by_the_minute(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    for arrived in (4, 6):
        beat(client, engine_id, arrived)
        let_time_pass(database, 60.0)
    controller.tick()
    controller.tick()
    with database.read() as uow:
        rows = uow.session.scalars(sa.select(EngineLoad).order_by(EngineLoad.start_s)).all()
        assert [row.requests for row in rows] == [4, 6]
        assert [row.input_tokens for row in rows] == [256, 384]
        # A minute may end while the test runs.
        assert rows[1].start_s - rows[0].start_s in (60, 120)


def test_a_forecast_is_told_once_something_is_known_of_the_load(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    url = f"/v1/forecasts/{engine_id}"
    answer = client.get(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_history")
    for _ in range(3):
        beat(client, engine_id, 8)
        let_time_pass(database, 60.0)
    controller.tick()
    told = client.get(url).json()
    assert told["forecaster"] == "constant"
    assert told["rates_rps"] == pytest.approx([8.0] * 5)
    assert told["expected_peak_rps"] == pytest.approx(8.0)
    assert 8.0 <= told["held_peak_rps"] <= told["peak_rps"]
    assert told["history_slots"] in (3, 4)  # a minute may end while the test runs
    assert told["mean_input_tokens"] == MIX[0]
    assert client.get("/v1/forecasts/eng_none").status_code == 404


def test_beyond_its_devices_the_engine_gets_all_of_them_and_a_condition(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 500)
    controller.tick()
    assert replicas(client, engine_id) == DEVICES
    acknowledge(client, engine_id)
    let_time_pass(database, 200.0)
    beat(client, engine_id, 500)
    controller.tick()
    newest = client.get("/v1/decisions", params={"engine_id": engine_id}).json()[0]
    assert (newest["action"], newest["reason"]) == ("raise_condition", "capacity_beyond_table")
    assert newest["observed"]["admit_rps"] == DEVICES * RATE_OF_ONE_RPS


def admission(client: TestClient, engine_id: str) -> Json | None:
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    found: Json | None = policy["requested"].get("admission")
    return found


def patch_guards(client: TestClient, engine_id: str, **guards: Any) -> None:
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    answer = client.patch(url, json={"guards": guards}, headers={"if-match": tag})
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)


def test_beyond_its_devices_the_engine_lets_in_what_they_carry_until_the_load_is_gone(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 500, ttft_ms=800.0)
    controller.tick()
    admitted = {"rate_rps": DEVICES * RATE_OF_ONE_RPS, "burst_requests": None}
    assert admission(client, engine_id) == admitted
    acknowledge(client, engine_id)
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert versions[0]["reason"].endswith("30 a second are let in")
    for _ in range(2):
        assert admission(client, engine_id) is not None
        let_time_pass(database, 181.0)
        beat(client, engine_id, 5)
        controller.tick()
        acknowledge(client, engine_id)
    assert admission(client, engine_id) is None
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert versions[0]["reason"].endswith("all requests are let in")


def test_where_the_guard_forbids_it_nobody_is_turned_away(
    client: TestClient, controller: Controller, engine_id: str
) -> None:
    patch_guards(client, engine_id, allow_shedding=False)
    beat(client, engine_id, 500, ttft_ms=800.0)
    controller.tick()
    assert replicas(client, engine_id) == DEVICES
    assert admission(client, engine_id) is None
    newest = client.get("/v1/decisions", params={"engine_id": engine_id}).json()[0]
    assert newest["observed"]["admit_rps"] == DEVICES * RATE_OF_ONE_RPS


def test_the_guards_of_the_policy_are_obeyed(
    client: TestClient, controller: Controller, engine_id: str
) -> None:
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    answer = client.patch(url, json={"guards": {"max_gpus": 2}}, headers={"if-match": tag})
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)
    beat(client, engine_id, 25)
    controller.tick()
    assert replicas(client, engine_id) == 2


def test_silence_of_the_engine_changes_nothing(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 15)
    controller.tick()
    acknowledge(client, engine_id)
    let_time_pass(database, 4000.0)
    controller.tick()
    assert replicas(client, engine_id) == 2
    assert reasons(client, engine_id)[0] == "capacity_no_data"


def test_a_refused_change_is_tried_again_when_the_guards_allow(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    """A rank that died while it warmed up left the old plan serving."""
    beat(client, engine_id, 15)
    controller.tick()
    acknowledge(
        client,
        engine_id,
        result="refused",
        message="a rank died while it warmed up",
        policy=settings_of(1).to_json(),
    )
    assert replicas(client, engine_id) == 1
    for wait_s, expected in ((31.0, 1), (60.0, 2)):
        let_time_pass(database, wait_s)
        beat(client, engine_id, 15)
        controller.tick()
        assert replicas(client, engine_id) == expected
    assert "capacity_guard_interval" in reasons(client, engine_id)


def test_a_plan_that_somebody_else_chose_is_left_alone(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 2)
    controller.tick()
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    client.patch(url, json={"plan": {"dp": 3}}, headers={"if-match": tag})
    acknowledge(client, engine_id)
    let_time_pass(database, 4000.0)
    beat(client, engine_id, 2)
    controller.tick()
    assert replicas(client, engine_id) == 3
    assert reasons(client, engine_id)[0] == "capacity_drift_paused"


def beats_of(arrived: int, *, seconds: float = 1.0, ttft_ms: float = 40.0) -> list[Heartbeat]:
    """One heartbeat of so many requests, each of which ended."""
    body = heartbeat_body(arrived=arrived, policy={}, ttft_ms=ttft_ms)
    stats = {"waiting": 3, "running": 7}
    return [
        Heartbeat(
            window_s=seconds,
            arrived=arrived,
            stats=stats,
            requests=body["requests"],
            steps=[],
            received_at=utc_now(),
        )
    ]


@pytest.mark.parametrize(
    ("arrived", "seconds", "ttft_ms", "is_more"),
    [(12, 1.0, 40.0, False), (150, 10.0, 40.0, True), (115, 10.0, 900.0, True)],
)
def test_a_plan_is_short_of_what_luck_does_not_explain_or_what_misses(
    arrived: int, seconds: float, ttft_ms: float, is_more: bool
) -> None:
    """Ten a second are carried; twelve in one second happen, fifteen a second in ten do not. A
    rollout ends for it."""
    beats = beats_of(arrived, seconds=seconds, ttft_ms=ttft_ms)
    engine = EngineRow(
        capacity_table=capacity_table().to_json(), effective_policy=settings_of(1).to_json()
    )
    now = utc_now()
    seen = observe(beats, Sla.parse(SLA), now=now)
    assert is_short(engine, Sight(beats=beats, seen=seen, now=now)) is is_more


def test_what_ended_without_a_token_did_not_begin() -> None:
    (beat,) = beats_of(4)
    beat.requests = [*beat.requests, {**beat.requests[0], "token_ms": [], "outcome": "errored"}]
    look = look_at([beat], None, queue_of([beat]))
    assert look is not None
    assert (look.ended, look.requests) == (4.0, 4.0)


def test_what_a_busy_engine_begins_outlives_a_restart_of_the_service() -> None:
    busy = BusyRate(plan="dp=1", begun=90.0, seconds=9.0, running=4.0, is_felt=True, read_s=5.0)
    memory = CapacityMemory(busy=busy)
    kept = capacity_to_json(memory)
    assert capacity_from_json(kept) == memory
    del kept["busy"]  # as an earlier version kept it
    assert capacity_from_json(kept) == CapacityMemory()
