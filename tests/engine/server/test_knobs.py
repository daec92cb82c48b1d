"""The knob plane: ETags, merge patches, knob classes, dry runs, and changes under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.engine import Engine
from engine.policy.document import EnginePolicy
from engine.spec.modes import BASE, SHIFT, TABLE, Mode, ModePin
from engine.spec.plan import ParallelPlan
from tests.engine.server.conftest import MODEL, Server, serving, simulated_engine


@pytest.fixture
def knobs(tiny_dir: Path) -> Iterator[Server]:
    with (
        simulated_engine(tiny_dir, step_s=0.005) as engine,
        serving(engine, tiny_dir) as running,
    ):
        yield running


def _patch(server: Server, patch: dict[str, Any], **params: Any) -> httpx.Response:
    etag = server.http.get("/v1/engine/policy").headers["etag"]
    return server.http.patch(
        "/v1/engine/policy", json=patch, headers={"If-Match": etag}, params=params
    )


def _problem(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = reply.json()
    assert found["status"] == status
    assert found["trace_id"]
    return found


def test_the_policy_has_a_strong_etag_that_changes_with_it(knobs: Server) -> None:
    first = knobs.http.get("/v1/engine/policy")
    assert first.json()["schema"] == "policy/v1"
    assert first.json()["plan"] == {"dp": 1, "pp": 1, "sp": 2, "tp": 2}
    assert first.headers["etag"].startswith('"')
    assert knobs.http.get("/v1/engine/policy").headers["etag"] == first.headers["etag"]
    changed = _patch(knobs, {"shift": {"threshold_tokens": 32}})
    assert changed.headers["etag"] != first.headers["etag"]
    assert knobs.http.get("/v1/engine/policy").headers["etag"] == changed.headers["etag"]


def test_what_another_changes_meanwhile_is_neither_told_by_the_wrong_etag_nor_overwritten(
    knobs: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control plane changes the policy right after it was read."""
    changed: list[EnginePolicy] = []

    def read(engine: Engine) -> EnginePolicy:
        found = engine._policy
        if changed:
            engine._policy = changed.pop()
        return found

    monkeypatch.setattr(Engine, "policy", property(read))
    before = knobs.engine.policy
    changed.append(replace(before, version=7))
    told = knobs.http.get("/v1/engine/policy")
    assert told.headers["etag"].startswith(f'"{told.json()["version"]}-')
    match = {"If-Match": knobs.http.get("/v1/engine/policy").headers["etag"]}
    theirs = replace(before, version=8, settings=replace(before.settings, threshold_tokens=99))
    changed.append(theirs)
    ours = {"shift": {"threshold_tokens": 5}}
    assert knobs.http.patch("/v1/engine/policy", json=ours, headers=match).status_code == 412
    assert knobs.engine.policy == theirs


def test_a_hot_change_is_in_force_when_the_answer_comes(knobs: Server) -> None:
    reply = _patch(knobs, {"shift": {"threshold_tokens": 17}, "caps": {"max_num_seqs": 3}})
    answer = reply.json()
    assert reply.status_code == 200
    assert answer["changes"] == {"shift.threshold_tokens": "hot", "caps.max_num_seqs": "drain"}
    assert answer["class"] == "drain"
    assert answer["effective"]["version"] == 1
    assert knobs.engine.settings.threshold_tokens == 17
    assert knobs.engine.settings.caps.max_num_seqs == 3
    assert knobs.engine.stats().policy_version == 1


def test_a_rung_is_pinned_and_rungs_are_restricted_with_the_next_step(tiny_dir: Path) -> None:
    plan = ParallelPlan(sp=4, shift=True)
    with (
        simulated_engine(tiny_dir, step_s=0.001, plan=plan) as engine,
        serving(engine, tiny_dir) as server,
    ):
        pinned = _patch(server, {"mode": "2x2"})
        assert pinned.json()["changes"] == {"mode": "hot"}
        server.complete(prompt=[5, 6, 7], max_tokens=5)
        assert engine.stats().steps[Mode("2x2")] == 5
        assert 'mode="2x2"' in server.http.get("/metrics").text
        knobs = {k["name"]: k for k in server.http.get("/v1/engine/capabilities").json()["knobs"]}
        assert knobs["mode"]["choices"] == ["table", "auto", "base", "shift", "2x2"]
        refused = _problem(_patch(server, {"shift": {"rungs": ["base"]}}), 422)
        assert "mode '2x2' is not among the rungs base" in refused["detail"]
        patch = {
            "mode": "auto",
            "shift": {"rungs": ["shift", "2x2"], "rung_thresholds": {"2x2": 9}},
        }
        answer = _patch(server, patch).json()
        assert answer["changes"] == {
            "shift.rungs": "hot",
            "shift.rung_thresholds": "hot",
            "mode": "hot",
        }
        assert answer["diff"][0] == {
            "knob": "shift.rungs",
            "from": None,
            "to": ["2x2", "shift"],
            "class": "hot",
        }
        back = _patch(server, {"shift": {"rungs": None, "rung_thresholds": None}})
        assert back.json()["effective"]["shift"] == {"enabled": True, "threshold_tokens": 256}
        engine.config = replace(engine.config, has_rungs=False)  # as paced as Arctic Inference
        for patch in (
            {"mode": "2x2"},
            {"mode": "table"},
            {"shift": {"rung_thresholds": {"2x2": 9}}},
        ):
            refused = _problem(_patch(server, patch), 422)
            assert "steps in base and shift only; restrict shift.rungs" in refused["detail"]
        ends = {"mode": "table", "shift": {"rungs": ["base", "shift"]}}
        assert _patch(server, ends).status_code == 200


def test_a_plan_on_the_ladder_is_taken_up_without_other_ranks(tiny_dir: Path) -> None:
    plan = ParallelPlan(sp=4, shift=True)
    with (
        simulated_engine(tiny_dir, step_s=0.001, plan=plan) as engine,
        serving(engine, tiny_dir) as server,
    ):
        infos = engine.executor_infos
        answer = _patch(server, {"plan": {"sp": 2, "tp": 2}, "shift": {"enabled": False}}).json()
        assert answer["changes"] == {"plan": "hot"}
        assert answer["effective"]["plan"] == {"dp": 1, "pp": 1, "sp": 2, "tp": 2}
        server.complete(prompt=[5, 6, 7], max_tokens=5)
        assert engine.stats().steps[Mode("2x2")] == 5
        knobs = {k["name"]: k for k in server.http.get("/v1/engine/capabilities").json()["knobs"]}
        assert knobs["plan"]["current"] == "sp=2,tp=2"
        assert "sp=4,shift" in knobs["plan"]["hot_choices"]
        assert server.http.get("/v1/engine/mode-table").json()["rungs"] == ["2x2"]
        back = _patch(server, {"plan": {"sp": 1, "tp": 4}}).json()
        assert back["class"] == "hot"
        assert "hold the shards of sp=4,shift, whose room for KV" in back["warnings"][0]
        server.complete(prompt=[5, 6, 7], max_tokens=5)
        assert engine.stats().steps[SHIFT] == 5
        assert all(a is b for a, b in zip(infos, engine.executor_infos, strict=True))
        other = _patch(server, {"plan": {"sp": 2, "tp": 1}}, dry_run=True).json()
        assert other["class"] == "reshape"
        assert other["diff"][0]["why"] == "a stage of 2 ranks instead of 4 holds other shards"


def test_a_null_takes_a_cap_away(knobs: Server) -> None:
    assert _patch(knobs, {"caps": {"max_queue": 5}}).json()["effective"]["caps"]["max_queue"] == 5
    assert _patch(knobs, {"caps": {"max_queue": None}}).status_code == 200
    assert knobs.engine.settings.caps.max_queue is None


def test_a_document_that_was_read_can_be_edited_and_sent_back(knobs: Server) -> None:
    document = knobs.http.get("/v1/engine/policy").json()
    document["mode"] = "base"
    reply = _patch(knobs, document)
    assert reply.json()["changes"] == {"mode": "hot"}


def test_nothing_changes_without_a_change(knobs: Server) -> None:
    etag = knobs.http.get("/v1/engine/policy").headers["etag"]
    reply = _patch(knobs, {})
    assert reply.json()["changes"] == {}
    assert reply.headers["etag"] == etag


def test_a_patch_without_if_match_is_428_and_with_a_stale_one_412(knobs: Server) -> None:
    stale = knobs.http.get("/v1/engine/policy").headers["etag"]
    assert _patch(knobs, {"mode": "base"}).status_code == 200
    missing = knobs.http.patch("/v1/engine/policy", json={"mode": "auto"})
    assert _problem(missing, 428)["code"] == "precondition_required"
    late = knobs.http.patch("/v1/engine/policy", json={"mode": "auto"}, headers={"If-Match": stale})
    assert _problem(late, 412)["code"] == "stale_policy"
    assert knobs.engine.settings.pin == ModePin(BASE)


def test_a_dry_run_names_the_class_of_each_change_and_changes_nothing(knobs: Server) -> None:
    patch = {"plan": {"sp": 4, "tp": 1}, "shift": {"threshold_tokens": 8}}
    answer = _patch(knobs, patch, dry_run=True).json()
    assert answer["dry_run"] is True
    assert answer["class"] == "reshape"
    assert {d["knob"]: d["class"] for d in answer["diff"]} == {
        "plan": "reshape",
        "shift.threshold_tokens": "hot",
    }
    assert answer["diff"][0]["to"]["plan"]["sp"] == 4
    assert "below max_num_seqs" in answer["warnings"][0]
    misspelt = _problem(_patch(knobs, patch, dryrun=True), 422)
    assert "did you mean 'dry_run'?" in misspelt["detail"]
    assert knobs.engine.settings.plan.sp == 2
    assert knobs.engine.policy.version == 0


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"turbo": True}, "/turbo: unknown knob"),
        ({"caps": {"max_num_seq": 4}}, "/caps/max_num_seq: unknown knob"),
        ({"caps": {"max_num_seqs": "many"}}, "/caps/max_num_seqs"),
        ({"plan": {"sp": 3}}, "8 query heads do not divide"),
        ({"mode": "sideways"}, "sideways"),
        ({"engine": "another"}, "/engine"),
        ({"shift": {"threshold_tokens": -1}}, "threshold_tokens=-1"),
        ({"shift": {"threshold_tokens": 2**64}}, "threshold_tokens=18446744073709551616"),
        ({"caps": {"max_step_ms": 10**400}}, "max_step_ms=1000"),
        ({"plan": {"sp": 4, "tp": 2}}, "8 devices"),
    ],
)
def test_an_impossible_policy_is_422_with_the_reason(
    knobs: Server, patch: dict[str, Any], said: str
) -> None:
    assert said in _problem(_patch(knobs, patch), 422)["detail"]
    assert knobs.engine.policy.version == 0


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_plan_nobody_has_devices_for_starts_nothing(server: Server, dry_run: bool) -> None:
    """The real ranks of a CPU: 128 of them used to be started."""
    for plan in ({"dp": 64, "tp": 2}, {"dp": 10**9}):
        found = _problem(_patch(server, {"plan": plan}, dry_run=dry_run), 422)
        assert found["detail"].startswith("/plan: ")
        assert "devices, this engine has" in found["detail"]
    assert server.engine.policy.version == 0
    assert server.complete(prompt="x", max_tokens=2).status_code == 200


def test_a_cap_above_the_envelope_is_409_with_the_class_it_would_need(knobs: Server) -> None:
    limit = knobs.engine.envelope.max_num_seqs
    found = _problem(_patch(knobs, {"caps": {"max_num_seqs": limit + 1}}), 409)
    assert found["needs"] == "restart"
    assert str(limit) in found["detail"]


def test_a_body_that_is_no_object_of_knobs_is_422(knobs: Server) -> None:
    for content in (b"{", b"[]", b"[" * 100_000, b'{"\\ud800": 1}'):
        reply = knobs.http.patch("/v1/engine/policy", content=content, headers={"If-Match": "*"})
        _problem(reply, 422)


def test_capabilities_name_every_knob_with_class_and_range(knobs: Server) -> None:
    answer = knobs.http.get("/v1/engine/capabilities").json()
    by_name = {knob["name"]: knob for knob in answer["knobs"]}
    assert by_name["plan"]["class"] == "reshape"
    assert by_name["shift.threshold_tokens"]["class"] == "hot"
    assert by_name["caps.max_num_seqs"]["maximum"] == knobs.engine.envelope.max_num_seqs
    assert by_name["shift.threshold_tokens"]["measured_cost_s"] is None
    _patch(knobs, {"shift": {"threshold_tokens": 32}})
    answer = knobs.http.get("/v1/engine/capabilities").json()
    by_name = {knob["name"]: knob for knob in answer["knobs"]}
    assert by_name["shift.threshold_tokens"]["measured_cost_s"] > 0


def test_a_change_of_ranks_tells_its_way_and_its_price_before_and_after(knobs: Server) -> None:
    half = {"plan": {"tp": 1}}
    seen = _patch(knobs, half, dry_run=True).json()["transition"]
    assert (seen["way"], seen["peak_devices"], seen["least_devices"]) == ("stop_and_carry", 4, 0)
    assert _patch(knobs, half).json()["transition"]["way"] == "stop_and_carry"
    seen = _patch(knobs, {"plan": {"dp": 2}}, dry_run=True, drain_s=3).json()
    assert (seen["changes"], seen["class"]) == ({"plan.dp": "drain"}, "drain")
    assert (seen["transition"]["way"], seen["transition"]["is_measured"]) == ("add", False)
    done = _patch(knobs, {"plan": {"dp": 2}}).json()["transition"]
    assert (done["way"], done["is_measured"], done["carried"]) == ("add", True, 0)
    seen = _patch(knobs, {"plan": {"dp": 1}}, dry_run=True, drain_s=3).json()["transition"]
    assert (seen["way"], seen["drain_s"], seen["is_measured"]) == ("remove", 3, False)
    answer = knobs.http.get("/v1/engine/capabilities").json()
    (replicas,) = [knob for knob in answer["knobs"] if knob["name"] == "plan.dp"]
    assert (replicas["class"], replicas["current"], replicas["maximum"]) == ("drain", 2, 2)
    measured = {way["way"]: way["is_measured"] for way in replicas["ways"]}
    assert measured == {"add": True, "remove": False}
    assert _problem(_patch(knobs, {"plan": {"dp": 1}}, drain_s=-1), 422)


def test_an_engine_that_was_not_timed_shows_no_table_and_warns_who_asks_for_one(
    knobs: Server,
) -> None:
    answer = knobs.http.get("/v1/engine/mode-table").json()
    assert (answer["mode"], answer["threshold_tokens"]) == ("auto", 256)
    assert answer["tables"] == [None]
    changed = _patch(knobs, {"mode": "table"}).json()
    assert changed["changes"] == {"mode": "hot"}
    assert "no mode table was measured" in changed["warnings"][0]


def test_a_measured_table_is_shown_and_a_threshold_can_be_pinned_over_it(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.0005, pin=TABLE) as engine,
        serving(engine, tiny_dir) as server,
    ):
        (table,) = server.http.get("/v1/engine/mode-table").json()["tables"]
        assert table["plan"] == "sp=2,tp=2,shift"
        assert {bucket["mode"] for bucket in table["buckets"]} == {"shift"}
        assert _patch(server, {"mode": "auto"}).json()["warnings"] == []
        assert server.http.get("/v1/engine/mode-table").json()["mode"] == "auto"
        assert _patch(server, {"mode": "table"}).json()["warnings"] == []
        assert server.complete(prompt="x", max_tokens=3).status_code == 200
        assert {sample.shape.mode for sample in engine.drain_samples()} == {"shift"}


def test_a_reshape_under_load_keeps_a_stream_going(knobs: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 60, "ignore_eos": True, "stream": True}
    body["return_token_ids"] = True
    with knobs.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        first = next(lines)
        answer = _patch(knobs, {"plan": {"sp": 1, "tp": 2}, "shift": {"enabled": False}})
        assert answer.json()["class"] == "reshape"
        events = [line for line in lines if line.startswith("data: {")]
    assert str(knobs.engine.settings.plan) == "tp=2"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in [first, *events]]
    assert choices[-1]["finish_reason"] == "length"
    assert sum(len(choice["token_ids"]) for choice in choices) == 60
