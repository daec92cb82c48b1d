"""An observed engine is told which entry of its capacity table it should be on."""

from __future__ import annotations

import shlex

import pytest
import yaml
from starlette.testclient import TestClient

from api.control.controller import Controller
from api.documents.control_state import capacity_to_json
from policies.capacity_state import CapacityMemory
from store import Database
from tests.api.control.test_capacity import let_time_pass
from tests.api.observed.worlds import (
    RATE_OF_ONE_RPS,
    SLA,
    advice,
    bind,
    capacity_table,
    observe,
    see,
    settings_of,
)
from tests.api.worlds import add_recommendation, context_of, engine_body


def test_more_load_than_it_carries_is_answered_by_a_larger_entry(
    client: TestClient, database: Database
) -> None:
    engine_id = observe(client)
    bind(client, engine_id)
    see(database, engine_id, 15.0)
    told = advice(client, engine_id)
    assert told["reason"] == "load_up"
    assert told["observed_rps"] == pytest.approx(15.0)
    assert (told["num_devices"], told["is_there"], told["applied_by"]) == (2, False, "hand")
    words = shlex.split(told["launch"]["command"])
    assert words[:3] == ["vllm", "serve", "/m"]
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--port") + 1] == "1"


def test_no_more_margin_is_advised_than_the_slow_loop_holds(
    client: TestClient, database: Database
) -> None:
    engine_id = observe(client)
    bind(client, engine_id)
    see(database, engine_id, 90.0)
    whole = advice(client, engine_id)
    with database.begin() as uow:
        memory = capacity_to_json(CapacityMemory(caution=0.0))
        uow.engines.get(engine_id).capacity_memory = memory
    none = advice(client, engine_id)
    assert none["peak_rps"] == pytest.approx(90.0)
    assert whole["peak_rps"] > none["peak_rps"]


def test_the_deployment_and_the_compose_file_start_the_same(
    client: TestClient, database: Database
) -> None:
    engine_id = observe(client, name="Chat No. 1")
    bind(client, engine_id)
    see(database, engine_id, 35.0)
    launch = advice(client, engine_id)["launch"]
    deployment = yaml.safe_load(launch["kubernetes"])
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert deployment["metadata"]["name"] == "chat-no-1"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert shlex.join([*container["command"], *container["args"]]) == launch["command"]
    (service,) = yaml.safe_load(launch["compose"])["services"].values()
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["count"], devices["capabilities"]) == (4, ["gpu"])
    assert shlex.join([*service["entrypoint"], *service["command"]]) == launch["command"]


def test_sglang_is_told_to_show_its_metrics(client: TestClient, database: Database) -> None:
    engine_id = observe(client, system="sglang")
    bind(client, engine_id)
    see(database, engine_id, 5.0)
    told = advice(client, engine_id)
    assert (told["reason"], told["is_there"]) == ("holds", True)
    assert "--enable-metrics --host 0.0.0.0 --model-path /m" in told["launch"]["command"]


def test_what_its_flags_cannot_say_is_told(client: TestClient, database: Database) -> None:
    engine_id = observe(client)
    bind(client, engine_id, capacity_table(max_step_ms=30.0, max_queue=9))
    see(database, engine_id, 5.0)
    told = advice(client, engine_id)
    assert told["left_out"] == [
        "vllm has no flag for max_step_ms=30", "vllm has no flag for max_queue=9",
    ]  # fmt: skip
    assert told["is_there"] is True


def test_beyond_the_table_the_largest_is_told(client: TestClient, database: Database) -> None:
    engine_id = observe(client, max_devices=2)
    bind(client, engine_id)
    see(database, engine_id, 500.0)
    told = advice(client, engine_id)
    assert (told["reason"], told["num_devices"]) == ("beyond_table", 2)


def test_without_a_table_or_a_load_nothing_is_guessed(client: TestClient) -> None:
    engine_id = observe(client)
    url = f"/v1/engines/{engine_id}/advice"
    answer = client.get(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_table")
    bind(client, engine_id)
    told = advice(client, engine_id)
    assert (told["reason"], told["entry"], told["launch"]) == ("no_data", None, None)
    own = client.post("/v1/engines", json=engine_body()).status_code
    assert own == 409  # the name is that of the observed one


def test_a_table_that_its_system_cannot_run_is_told(client: TestClient) -> None:
    table = capacity_table()
    for entry in table["entries"]:
        entry["settings"]["plan"] |= {"sp": 2}
        entry["num_devices"] *= 2
    engine_id = observe(client)
    bind(client, engine_id, table)
    answer = client.get(f"/v1/engines/{engine_id}/advice")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_entry")


def test_the_slow_loop_tells_what_it_would_do_and_changes_nothing(
    client: TestClient, database: Database
) -> None:
    engine_id = observe(client)
    bind(client, engine_id)
    controller = Controller(context_of(client))
    for rate, wait_s in ((15.0, 200.0), (15.0, 200.0), (35.0, 0.0)):
        see(database, engine_id, rate)
        controller.tick()
        let_time_pass(database, wait_s)
    found = client.get("/v1/decisions", params={"engine_id": engine_id}).json()
    assert [(d["action"], d["reason"]) for d in found] == [("advise", "capacity_load_up")] * 2
    assert [d["settings"]["plan"]["tp"] for d in found] == [4, 2]
    assert {d["policy_version"] for d in found} == {None}
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    assert policy["effective"] == settings_of(1).to_json()
    assert policy["requested"]["sla"] == SLA
    forecast = client.get(f"/v1/forecasts/{engine_id}").json()
    assert forecast["peak_rps"] >= 1.5 * RATE_OF_ONE_RPS


@pytest.mark.parametrize(
    ("patch", "status", "detail"),
    [
        ({"mode": "base"}, 422, "/mode: a vllm server has no such knob"),
        ({"shift": {"threshold_tokens": 64}}, 422, "/shift: a vllm server has no such knob"),
        ({"scheduler": {"order": "priority"}}, 422, "/scheduler: a vllm server has no such knob"),
        ({"caps": {"max_step_ms": 20.0}}, 422, "/caps/max_step_ms: a vllm server has no such knob"),
        ({"admission": {"rate_rps": 5.0}}, 422, "/admission: a vllm server has no such knob"),
        ({"plan": {"sp": 2}}, 422, "no sequence parallelism"),
        ({"plan": {"tp": 2}}, 409, "cannot restart chat"),
        ({"caps": {"max_num_seqs": 8}}, 409, "cannot restart chat"),
    ],
)
def test_knobs_that_it_does_not_have_are_refused(
    client: TestClient, patch: dict[str, object], status: int, detail: str
) -> None:
    engine_id = observe(client)
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    answer = client.patch(url, json=patch, headers={"if-match": tag})
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text


def test_an_sla_and_guards_hold_at_once(client: TestClient) -> None:
    engine_id = observe(client)
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    patch = {"sla": SLA, "guards": {"max_gpus": 4}}
    answer = client.patch(url, json=patch, headers={"if-match": tag})
    assert answer.json()["policy"]["ack_state"] == "applied", answer.text
    assert client.get(f"/v1/engines/{engine_id}").json()["sla"] == SLA


def test_a_recommendation_holds_it_to_its_sla_and_says_that_its_settings_stay(
    client: TestClient, database: Database
) -> None:
    engine_id = observe(client)
    recommendation_id = add_recommendation(database)
    answer = client.post(
        f"/v1/recommendations/{recommendation_id}:apply", json={"engine_id": engine_id}
    ).json()
    assert "cannot restart chat: its settings stay" in answer["warnings"][0]
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["sla"], engine["recommendation_id"]) == (SLA, recommendation_id)
    assert engine["effective_policy"] == settings_of(1).to_json()
    see(database, engine_id, 15.0)
    seen = client.get(f"/v1/engines/{engine_id}/observation").json()
    assert seen["load_band"] == 1
    Controller(context_of(client)).tick()
    assert client.get(f"/v1/engines/{engine_id}/policy").json()["version"] == 2


def test_whoever_restarts_it_says_what_runs_now(client: TestClient, database: Database) -> None:
    engine_id = observe(client)
    bind(client, engine_id)
    assert observe(client, plan="tp=2") == engine_id
    see(database, engine_id, 15.0)
    told = advice(client, engine_id)
    assert (told["reason"], told["is_there"]) == ("holds", True)
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert (versions[0]["origin"], versions[0]["document"]["sla"]) == ("adopted", SLA)


def test_nobody_may_speak_for_it(client: TestClient) -> None:
    engine_id = observe(client)
    policy = settings_of(1).to_json()
    body = {"window_s": 1.0, "arrived": 1, "policy_version": 1, "policy": policy, "stats": {},
            "requests": [], "steps": []}  # fmt: skip
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 403
    answer = client.post(
        f"/v1/engines/{engine_id}/policy/versions/1:acknowledge",
        json={"result": "applied", "policy": policy},
    )
    assert answer.status_code == 403
