"""Policies over REST: ETag and If-Match, merge patch, envelope, rollback, long poll."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.documents.policy import DEFAULT_GUARDS, PolicyDocument
from engine.spec.errors import PolicyError
from engine.spec.inventory import Inventory, RankKind
from tests.api.worlds import (
    acknowledge,
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


def test_a_patch_without_if_match_is_428(client: TestClient) -> None:
    answer = patched(client, register(client), {"mode": "base"}, None)
    assert (answer.status_code, answer.json()["code"]) == (428, "if_match_required")


def test_a_stale_if_match_is_412_and_changes_nothing(client: TestClient) -> None:
    engine_id = register(client)
    stale = etag_of(client, engine_id)
    assert patched(client, engine_id, {"mode": "base"}, stale).status_code == 200
    answer = patched(client, engine_id, {"mode": "shift"}, stale)
    assert (answer.status_code, answer.json()["code"]) == (412, "stale_policy")
    assert answer.headers["etag"] == etag_of(client, engine_id)
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    assert (policy["version"], policy["requested"]["mode"]) == (2, "base")


def test_a_misspelt_dry_run_changes_nothing(client: TestClient) -> None:
    engine_id = register(client)
    etag = etag_of(client, engine_id)
    answer = patched(client, engine_id, {"mode": "base"}, etag, dryrun=True)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/dryrun")
    assert "did you mean 'dry_run'?" in answer.json()["detail"]
    assert etag_of(client, engine_id) == etag
    assert client.get("/v1/engines?limit=2&nmae=west").status_code == 422
    assert client.get("/healthz?from=probe").is_success


def test_two_patches_at_once_let_one_through(client: TestClient) -> None:
    engine_id = register(client)
    etag = etag_of(client, engine_id)
    statuses: list[int] = []

    def write(seats: int) -> None:
        body = {"caps": {"max_num_seqs": seats}}
        statuses.append(patched(client, engine_id, body, etag).status_code)

    threads = [threading.Thread(target=write, args=(seats,)) for seats in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 412, 412]


def test_a_merge_patch_keeps_what_it_does_not_name_and_null_means_default(
    client: TestClient,
) -> None:
    engine_id = register(client)
    first = patched(
        client,
        engine_id,
        {"caps": {"max_num_seqs": 32, "max_step_ms": 45}},
        etag_of(client, engine_id),
    )
    assert first.json()["policy"]["requested"]["caps"]["max_step_ms"] == 45
    second = patched(client, engine_id, {"caps": {"max_step_ms": None}}, first.headers["etag"])
    caps = second.json()["policy"]["requested"]["caps"]
    assert (caps["max_num_seqs"], caps["max_step_ms"]) == (32, None)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"warp": 9}, "/warp"),
        ({"caps": {"max_speed": 1}}, "/caps/max_speed"),
        ({"caps": {"max_num_seqs": "many"}}, "/caps/max_num_seqs"),
        ({"guards": {"max_cost": 1}}, "/guards/max_cost"),
        ({"guards": {"drain_s": 1e6}}, "/guards/drain_s"),
        ({"guards": {"max_reshapes_per_h": 0.5}}, "/guards/max_reshapes_per_h"),
        ({"scheduler": {"order": "random"}}, "/scheduler/order"),
        ({"engine": "eng_other"}, "/engine"),
    ],
)
def test_an_unknown_knob_or_value_is_422_and_named(
    client: TestClient, body: Json, pointer: str
) -> None:
    engine_id = register(client)
    answer = patched(client, engine_id, body, etag_of(client, engine_id))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_caps_above_the_envelope_are_409_with_the_class_they_would_need(
    client: TestClient,
) -> None:
    engine_id = register(client)
    body = {"caps": {"max_num_seqs": 100_000}}
    answer = patched(client, engine_id, body, etag_of(client, engine_id))
    assert (answer.status_code, answer.json()["needs"]) == (409, "restart")
    assert "256" in answer.json()["detail"]


def test_a_plan_the_model_cannot_run_is_422_with_the_numbers(client: TestClient) -> None:
    engine_id = register(client)
    body = {"plan": {"sp": 1, "tp": 3}, "shift": {"enabled": False}}
    answer = patched(client, engine_id, body, etag_of(client, engine_id))
    assert answer.status_code == 422
    assert "4 query heads" in answer.json()["detail"]


def test_a_plan_the_engine_has_no_devices_for_is_refused_before_the_engine_is_asked(
    client: TestClient,
) -> None:
    """Also a dry run, and a rollback to what a larger machine once ran."""
    large = Inventory(kind=RankKind.CUDA, max_ranks=8).to_json()
    engine_id = register(client, inventory=large)
    for plan in ({"dp": 8}, {"dp": 10**9}):
        for dry_run in ("true", "false"):
            body = {"plan": plan}
            answer = patched(client, engine_id, body, etag_of(client, engine_id), dry_run=dry_run)
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["pointer"] == "/plan"
            assert "devices, this engine has 8" in answer.json()["detail"]
    wide = patched(client, engine_id, {"plan": {"dp": 4}}, etag_of(client, engine_id))
    assert wide.status_code == 200
    acknowledge(client, engine_id)
    narrow = patched(client, engine_id, {"plan": {"dp": 1}}, wide.headers["etag"])
    assert narrow.status_code == 200
    client.post(f"/v1/engines/{engine_id}:deregister")
    register(client, inventory={**large, "max_ranks": 2})
    answer = client.post(f"/v1/engines/{engine_id}:rollback", json={"version": 2})
    assert answer.status_code == 422
    assert "needs 8 devices, this engine has 2" in answer.json()["detail"]
    assert client.get(f"/v1/engines/{engine_id}/policy").json()["version"] == 3


def test_a_plan_that_the_machines_memory_cannot_hold_is_refused(client: TestClient) -> None:
    small = Inventory(kind=RankKind.CPU, max_ranks=8, kv_bytes=2**28, memory_bytes=2**30).to_json()
    engine_id = register(client, inventory=small)
    answer = patched(client, engine_id, {"plan": {"dp": 2}}, etag_of(client, engine_id))
    assert answer.status_code == 422
    assert "this machine has 1.07 GB" in answer.json()["detail"]


def test_of_an_engine_that_sends_no_inventory_the_knob_names_the_most_ranks(
    client: TestClient,
) -> None:
    knob = {"name": "plan", "class": "reshape", "maximum": 4}
    engine_id = register(client, capabilities=[knob])
    assert patched(
        client, engine_id, {"plan": {"dp": 4}}, etag_of(client, engine_id)
    ).is_client_error
    assert patched(client, engine_id, {"plan": {"dp": 2}}, etag_of(client, engine_id)).is_success


def test_a_plan_above_the_device_guard_is_409(client: TestClient) -> None:
    engine_id = register(client)
    body = {"guards": {"max_gpus": 2}, "plan": {"tp": 2}}
    answer = patched(client, engine_id, body, etag_of(client, engine_id))
    assert answer.status_code == 409
    assert "needs 4 devices" in answer.json()["detail"]


def test_a_dry_run_says_what_would_change_at_what_cost_and_writes_nothing(
    client: TestClient,
) -> None:
    engine_id = register(client)
    body = {"plan": {"sp": 4}, "shift": {"threshold_tokens": 8}, "caps": {"max_num_seqs": 16}}
    answer = patched(client, engine_id, body, etag_of(client, engine_id), dry_run="true").json()
    classes = {change["knob"]: change["class"] for change in answer["changes"]}
    assert classes == {
        "plan": "reshape",
        "shift.threshold_tokens": "hot",
        "caps.max_num_seqs": "drain",
    }
    assert answer["is_dry_run"]
    assert "below max_num_seqs" in answer["warnings"][0]
    way = answer["transition"]
    assert (way["way"], way["least_devices"], way["is_measured"]) == ("blue_green", 2, False)
    assert client.get(f"/v1/engines/{engine_id}/policy").json()["version"] == 1


def test_an_empty_patch_writes_no_version(client: TestClient) -> None:
    engine_id = register(client)
    answer = patched(client, engine_id, {}, etag_of(client, engine_id))
    assert (answer.status_code, answer.json()["policy"]["version"]) == (200, 1)


def test_requested_and_effective_differ_until_the_engine_acknowledges(client: TestClient) -> None:
    engine_id = register(client)
    answer = patched(client, engine_id, {"mode": "base"}, etag_of(client, engine_id)).json()
    assert answer["policy"]["requested"]["mode"] == "base"
    assert answer["policy"]["effective"]["mode"] == "auto"
    assert answer["policy"]["ack_state"] == "pending"
    acknowledged = acknowledge(client, engine_id, changes={"mode": "hot"}, lost_requests=2)
    assert acknowledged["effective"]["mode"] == "base"
    assert (acknowledged["ack_state"], acknowledged["applied_version"]) == ("applied", 2)
    metrics = client.get("/metrics").text
    assert 'gearshift_reconfig_duration_seconds_count{class="hot"} 1.0' in metrics
    assert "gearshift_reconfig_lost_requests_total 2.0" in metrics


def test_a_refused_version_is_replaced_by_what_the_engine_runs(client: TestClient) -> None:
    engine_id = register(client)
    patched(client, engine_id, {"mode": "base"}, etag_of(client, engine_id))
    running = engine_body()["policy"]
    answer = acknowledge(
        client, engine_id, result="refused", message="no such mode here", policy=running
    )
    assert (answer["version"], answer["requested"]["mode"]) == (3, "auto")
    assert (answer["ack_state"], answer["applied_version"]) == ("applied", 3)
    versions = client.get(f"/v1/engines/{engine_id}/policy/versions").json()
    assert [(v["version"], v["ack_state"], v["ack_message"]) for v in versions][1] == (
        2,
        "refused",
        "no such mode here",
    )


def test_an_acknowledgement_sent_twice_counts_once(client: TestClient) -> None:
    engine_id = register(client)
    patched(client, engine_id, {"mode": "base"}, etag_of(client, engine_id))
    first = acknowledge(client, engine_id, lost_requests=2)
    assert acknowledge(client, engine_id, lost_requests=2) == first
    assert "gearshift_reconfig_lost_requests_total 2.0" in client.get("/metrics").text


@pytest.mark.parametrize("result", ["applied", "refused"])
def test_an_acknowledgement_that_comes_late_takes_nothing_back(
    client: TestClient, result: str
) -> None:
    """The engine sent it twice since no answer came; the first was on its way all the while."""
    engine_id = register(client)
    patched(client, engine_id, {"mode": "base"}, etag_of(client, engine_id))
    acknowledge(client, engine_id)
    former = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    patched(client, engine_id, {"mode": "shift"}, etag_of(client, engine_id))
    newest = acknowledge(client, engine_id)
    late = client.post(
        f"/v1/engines/{engine_id}/policy/versions/2:acknowledge",
        json={"result": result, "policy": former, "seconds": 0.01},
    )
    assert late.json() == newest
    assert client.get(f"/v1/engines/{engine_id}").json()["applied_version"] == 3


def test_a_rollback_writes_the_version_applied_before_as_a_new_one(client: TestClient) -> None:
    engine_id = register(client)
    patched(client, engine_id, {"mode": "base"}, etag_of(client, engine_id))
    acknowledge(client, engine_id)
    answer = client.post(f"/v1/engines/{engine_id}:rollback", json={"reason": "worse"})
    assert answer.status_code == 200
    policy = answer.json()["policy"]
    assert (policy["version"], policy["requested"]["mode"]) == (3, "auto")
    newest = client.get(f"/v1/engines/{engine_id}/policy/versions").json()[0]
    assert (newest["origin"], newest["reason"]) == ("rollback", "worse (to version 1)")


def test_a_second_rollback_goes_further_back_and_not_to_what_the_first_left(
    client: TestClient,
) -> None:
    engine_id = register(client)
    for mode in ("base", "shift"):
        patched(client, engine_id, {"mode": mode}, etag_of(client, engine_id))
        acknowledge(client, engine_id)
    url = f"/v1/engines/{engine_id}:rollback"
    modes = []
    for _ in range(2):
        modes.append(client.post(url, json={}).json()["policy"]["requested"]["mode"])
        acknowledge(client, engine_id)
    assert modes == ["base", "auto"]
    nothing = client.post(url, json={})
    assert nothing.status_code == 409
    assert "no other version of its model applied before 5; name a" in nothing.json()["detail"]


def test_a_rollback_passes_versions_that_say_the_same(client: TestClient) -> None:
    """As where a change by hand was reverted: going back to those would change nothing."""
    engine_id = register(client)
    for mode in ("base", "shift", "base", "shift"):
        patched(client, engine_id, {"mode": mode}, etag_of(client, engine_id))
        acknowledge(client, engine_id)
    url = f"/v1/engines/{engine_id}:rollback"
    assert client.post(url, json={"version": 3}).json()["changes"] == []
    assert client.post(url, json={}).json()["policy"]["requested"]["mode"] == "base"


def test_a_rollback_with_nothing_before_is_409_and_to_no_version_404(client: TestClient) -> None:
    engine_id = register(client)
    assert client.post(f"/v1/engines/{engine_id}:rollback", json={}).status_code == 409
    url = f"/v1/engines/{engine_id}:rollback"
    assert client.post(url, json={"version": 9}).status_code == 404


def test_a_long_poll_returns_when_a_new_version_comes(client: TestClient) -> None:
    engine_id = register(client)
    etag = etag_of(client, engine_id)

    def patch_later() -> None:
        time.sleep(0.3)
        patched(client, engine_id, {"mode": "base"}, etag)

    thread = threading.Thread(target=patch_later)
    thread.start()
    answer = client.get(
        f"/v1/engines/{engine_id}/policy", params={"wait_s": 20, "after_version": 1}
    )
    thread.join()
    assert answer.json()["version"] == 2


def test_a_long_poll_without_news_ends_empty(client: TestClient) -> None:
    engine_id = register(client)
    answer = client.get(
        f"/v1/engines/{engine_id}/policy", params={"wait_s": 0.1, "after_version": 1}
    )
    assert (answer.status_code, answer.content) == (204, b"")


def test_patching_nothing_gives_the_same_document() -> None:
    document = {
        "schema": "policy/v1",
        "engine": "eng_1",
        **engine_body()["policy"],
        "sla": None,
        "guards": DEFAULT_GUARDS,
        "provenance": {},
    }
    read = PolicyDocument.from_json(document)
    assert read.patched({}).to_json() == read.to_json() == document
    with pytest.raises(PolicyError, match="/provenance"):
        read.patched({"provenance": {"recommendation": "rec_forged"}})
