"""No body is answered by a 5xx: what cannot be kept is a 422 with the field and the bound."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from api.app import create_app
from api.schemas.access import ApiKeyCreate
from api.schemas.examples.tuning import JOB_BODY as TUNING_BODY
from api.schemas.rollouts import RolloutCreate
from api.schemas.serving import Acknowledge, EngineRegister, HeartbeatIn
from api.schemas.tuning import TuningJobCreate
from api.web.settings import ServiceSettings
from store import Database
from tests.api.conftest import ADMIN
from tests.api.worlds import engine_body, heartbeat_body, register
from tests.postgres import BOTH

Json = dict[str, Any]
# The name of a live engine is its own.
NUMBERS = itertools.count()
INF, NAN = float("inf"), float("nan")
POLICY = engine_body()["policy"]
REQUEST = heartbeat_body(arrived=1, policy=POLICY)["requests"][0]
STEP = heartbeat_body(arrived=1, policy=POLICY)["steps"][0]


# Where a value reaches the database: columns take different numbers and texts.
ON_BOTH = pytest.mark.parametrize("service_url", BOTH, indirect=True)


@pytest.fixture
def client(settings: ServiceSettings, database: Database) -> Iterator[TestClient]:
    """A client that is answered a crash instead of meeting it."""
    del database  # its schema is what is needed
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {ADMIN}"
        yield client


def send(client: TestClient, method: str, path: str, body: Json, **headers: str) -> Any:
    """Send ``body`` with whatever Python's JSON can write, NaN and surrogates included."""
    headers = {"content-type": "application/json", **headers}
    return client.request(method, path, content=json.dumps(body), headers=headers)


def refused(answer: Any, pointer: str, bound: str) -> None:
    assert answer.status_code == 422, answer.text
    (error,) = [e for e in answer.json()["errors"] if e["pointer"].startswith(pointer)]
    assert bound in error["detail"]


def beat(**changes: Any) -> Json:
    return heartbeat_body(arrived=1, policy=POLICY, **changes)


@pytest.mark.parametrize(
    ("body", "pointer", "bound"),
    [
        ({**beat(), "arrived": 2**63}, "/arrived", "10000000"),
        (beat(window_s=INF), "/window_s", "finite number"),
        (beat(window_s=NAN), "/window_s", "finite number"),
        (beat(window_s=1e-308), "/window_s", "0.000001"),
        (beat(window_s=1e308), "/window_s", "100000000"),
        (beat(policy_version=2**70), "/policy_version", "2147483647"),
        (beat(requests=[{**REQUEST, "token_ms": [-5, 1]}]), "/requests/0/token_ms/0", "equal to 0"),
        (beat(requests=[{**REQUEST, "token_ms": [5, 1]}]), "/requests/0/token_ms", "must not fall"),
        (beat(requests=[{**REQUEST, "token_ms": [NAN]}]), "/requests/0/token_ms/0", "finite"),
        (beat(requests=[{**REQUEST, "token_ms": [1e308]}]), "/requests/0/token_ms/0", "1000000000"),
        (beat(requests=[{**REQUEST, "age_ms": INF}]), "/requests/0/age_ms", "finite"),
        (beat(requests=[{**REQUEST, "input_tokens": 2**70}]), "/requests/0/input", "10000000"),
        (beat(steps=[{**STEP, "steps": 2**70}]), "/steps/0/steps", "9007199254740991"),
        (beat(steps=[{**STEP, "seconds": INF}]), "/steps/0/seconds", "finite"),
        (beat(stats={"a": [{"b": NAN}]}), "/stats", "/a/0/b: nan is not a finite number"),
        (beat(stats={"a": 2**70}), "/stats", "/a: a whole number must be within"),
        (beat(stats={"a": "\ud800"}), "/stats", "/a: holds a lone surrogate"),
        (beat(stats={"\ud800": 1}), "/stats", "holds a lone surrogate"),
        (beat(stats={"a": "\0"}), "/stats", "/a: holds a null character"),
        (beat(devices=[2**70]), "/devices/0", "16384"),
        (beat(devices=[-1]), "/devices/0", "equal to 0"),
    ],
)
def test_a_heartbeat_beyond_its_bounds_is_refused(
    client: TestClient, body: Json, pointer: str, bound: str
) -> None:
    path = f"/v1/engines/{register(client)}/heartbeats"
    refused(send(client, "POST", path, body), pointer, bound)
    assert send(client, "POST", path, beat()).status_code == 202


@pytest.mark.parametrize(
    ("changes", "pointer", "bound"),
    [
        ({"num_devices": 2**70}, "/num_devices", "16384"),
        ({"num_devices": None, "hardware": "local"}, "/num_devices", "may use, up to 8"),
        ({"num_devices": 64, "hardware": "local"}, "/num_devices", "may use 8"),
        ({"options": {"num_devices": 64, "hardware": "local"}}, "/options", "may use 8"),
        ({"seed": 2**70}, "/seed", "4294967295"),
        ({"hardware": "0xh200"}, "/hardware", "hardware '0xh200'"),
        ({"hardware": "00xh200"}, "/hardware", "hardware '00xh200'"),
        ({"hardware": f"{2**70}xh200"}, "/hardware", "at most 16384"),
        ({"hardware": "9" * 5000 + "xh200"}, "/hardware", "at most 16384"),
        ({"hardware": "8xabacus"}, "/hardware", "known are"),
        ({"workload": "poisson:rate=1e308,input=1,output=1"}, "/workload", "at most 1e+07"),
        ({"workload": "poisson:rate=1e-308,input=1,output=1"}, "/workload", "at least 1e-06"),
        ({"workload": "azure-like:seconds=1e12"}, "/workload", "at most 1e+08"),
        ({"workload": "csv:/\ud800"}, "/workload", "lone surrogate"),
        ({"workload": "csv:/a\0"}, "/workload", "null character"),
        ({"model_dir": "/\ud800"}, "/model_dir", "lone surrogate"),
        ({"sla": "p95\ud800<=1"}, "/sla", "lone surrogate"),
        ({"dtype": "\ud800"}, "/dtype", "lone surrogate"),
        ({"cost_model_id": "\ud800"}, "/cost_model_id", "lone surrogate"),
        ({"options": {"timeout_s": NAN}}, "/options", "/timeout_s: nan is not a finite number"),
        ({"options": {"kv_cache_mib": 2**52}}, "/options", "at most 1073741824"),
        ({"options": {"seed": 2**40}}, "/options", "at most 4294967295"),
        ({"options": {"workload": "azure-like:seconds=1e12"}}, "/options", "at most 1e+08"),
        ({"options": {"hardware": "0xh200"}}, "/options", "hardware '0xh200'"),
    ],
)
def test_a_job_beyond_its_bounds_is_refused(
    client: TestClient, job_body: Json, changes: Json, pointer: str, bound: str
) -> None:
    refused(send(client, "POST", "/v1/tuning-jobs", {**job_body, **changes}), pointer, bound)


@ON_BOTH
def test_a_job_is_accepted_without_drawing_its_workload(
    client: TestClient, job_body: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("built in the request")

    monkeypatch.setattr("tuner.workload.synthetic.gamma_times", build)
    monkeypatch.setattr("tuner.workload.traces.read_trace", build)
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n")
    for workload in (job_body["workload"], f"auto:{trace}"):
        answer = send(client, "POST", "/v1/tuning-jobs", {**job_body, "workload": workload})
        assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("changes", "pointer", "bound"),
    [
        ({"name": "\ud800"}, "/name", "unicode"),
        ({"host": "a\0b"}, "/host", "null character"),
        ({"devices": [2**70]}, "/devices/0", "16384"),
        ({"capabilities": [{"x": NAN}]}, "/capabilities", "/0/x: nan is not a finite number"),
        ({"envelope": {"max_num_seqs": NAN}}, "/envelope", "/max_num_seqs: nan is not"),
        ({"envelope": {"max_num_seqs": "a"}}, "/envelope", "max_num_seqs: 'a' is not a int"),
        ({"model": {**engine_body()["model"], "num_heads": 0}}, "/model", "from 1 to 2147483647"),
        ({"model": {**engine_body()["model"], "num_heads": [1]}}, "/model", "whole number from 1"),
        ({"model": {**engine_body()["model"], "hidden_size": 2**40}}, "/model", "hidden_size="),
        ({"policy": {"plan": {"tp": 2**70}}}, "/policy", "/plan/tp: a whole number"),
        (
            {"policy": {"plan": {"dp": 2**20}}},
            "/policy/plan",
            "needs 1048576 devices, this engine has 1024",
        ),
    ],
)
def test_a_registration_beyond_its_bounds_is_refused(
    client: TestClient, changes: Json, pointer: str, bound: str
) -> None:
    refused(send(client, "POST", "/v1/engines", engine_body(**changes)), pointer, bound)


@pytest.mark.parametrize(
    ("patch", "bound"),
    [
        ({"guards": {"max_gpus": NAN}}, "/guards/max_gpus: nan is not a finite number"),
        ({"guards": {"min_interval_s": INF}}, "/guards/min_interval_s: inf is not"),
        ({"caps": {"max_queue": 2**70}}, "/caps/max_queue: a whole number must be within"),
        ({"caps": {"max_step_ms": 10**400}}, "/caps/max_step_ms: a whole number"),
        ({"shift": {"threshold_tokens": 2**70}}, "/shift/threshold_tokens: a whole number"),
        ({"sla": "\ud800"}, "/sla: holds a lone surrogate"),
        ({"\ud800": 1}, "holds a lone surrogate"),
    ],
)
def test_a_patch_beyond_its_bounds_is_refused(client: TestClient, patch: Json, bound: str) -> None:
    path = f"/v1/engines/{register(client)}/policy"
    tag = client.get(path).headers["ETag"]
    refused(send(client, "PATCH", path, patch, **{"If-Match": tag}), "/", bound)


@ON_BOTH
def test_versions_cursors_and_events_beyond_any_row_are_refused(client: TestClient) -> None:
    engine = f"/v1/engines/{register(client)}"
    answer = send(client, "POST", f"{engine}:rollback", {"version": 2**70})
    refused(answer, "/version", "2147483647")
    path = f"{engine}/policy/versions"
    for body in ({"seconds": INF}, {"lost_requests": 2**70}, {"message": "a\0"}):
        said = {"result": "applied", "policy": POLICY, **body}
        refused(send(client, "POST", f"{path}/1:acknowledge", said), f"/{next(iter(body))}", "")
    said = {"result": "applied", "policy": POLICY}
    assert send(client, "POST", f"{path}/{2**70}:acknowledge", said).status_code == 422
    assert client.get(f"{engine}/policy?after_version={2**70}").status_code == 422
    cursor = "MTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"  # a number of 30 digits
    assert client.get(f"/v1/engines?cursor={cursor}").status_code == 422
    for path in ("/v1/decisions?engine_id=%00", "/v1/engines/%00", "/v1/engines?cursor=IlwwIg"):
        assert client.get(path).status_code == 422, path
    last = {"Last-Event-ID": str(2**70)}
    assert client.get("/v1/tuning-jobs/none/events", headers=last).status_code == 422


@ON_BOTH
def test_a_cursor_of_another_lists_kind_is_refused(client: TestClient, job_body: Json) -> None:
    engine_id = register(client)
    job = f"/v1/tuning-jobs/{send(client, 'POST', '/v1/tuning-jobs', job_body).json()['id']}"
    lists = ("tuning-jobs", "engines", "recommendations", "cost-models", "api-keys")
    of_ids = [f"/v1/{name}" for name in lists]
    of_numbers = ["/v1/decisions", "/v1/audit", f"/v1/engines/{engine_id}/policy/versions"]
    for paths, right, wrong in (
        (of_ids, engine_id, ("", "7", "eng_", "eng_\0")),
        ([*of_numbers, f"{job}/trials"], "7", ("", engine_id, "1.5", str(2**31))),
    ):
        for path in paths:
            assert client.get(path, params={"cursor": right}).status_code == 200, path
            for cursor in wrong:
                assert client.get(path, params={"cursor": cursor}).status_code == 422, path


MANY = 20_000
UNKNOWN = {f"x{n}": n for n in range(MANY)}
BEAT = heartbeat_body(arrived=1, policy=POLICY)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (TuningJobCreate, {**TUNING_BODY, **UNKNOWN}),
        (ApiKeyCreate, {"name": "k", "scopes": ["x"] * MANY, **UNKNOWN}),
        (EngineRegister, {**engine_body(), "capabilities": [5] * MANY}),
        (EngineRegister, {**engine_body(), "devices": ["x"] * MANY}),
        (HeartbeatIn, {**BEAT, "requests": [5] * MANY, "steps": [5] * MANY}),
        (HeartbeatIn, {**BEAT, "requests": [{**REQUEST, **UNKNOWN}]}),
        (HeartbeatIn, {**BEAT, "requests": [{**REQUEST, "token_ms": ["x"] * MANY}]}),
        (HeartbeatIn, {**BEAT, "steps": [{**STEP, **UNKNOWN}]}),
        (Acknowledge, {"result": "applied", "policy": POLICY, "changes": UNKNOWN}),
        (RolloutCreate, {"engine_id": "e", "patch": {}, "replay": UNKNOWN, "limits": UNKNOWN}),
    ],
)
def test_a_body_of_which_all_is_wrong_is_told_of_in_a_few_words(
    kind: type[BaseModel], body: Json
) -> None:
    """Of each item that was wrong an object was made, a kilobyte for two bytes that came."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= 20


@ON_BOTH
def test_an_end_of_a_key_beyond_every_calendar_is_refused(client: TestClient) -> None:
    body = {"name": "k", "scopes": ["read"]}
    for end in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        answer = send(client, "POST", "/v1/api-keys", {**body, "expires_at": end})
        refused(answer, "/expires_at", "1 to 9999")
    end = "9999-12-31T23:59:59+00:00"
    assert send(client, "POST", "/v1/api-keys", {**body, "expires_at": end}).status_code == 201


def test_a_field_whose_name_is_no_text_is_refused(client: TestClient, job_body: Json) -> None:
    refused(send(client, "POST", "/v1/tuning-jobs", {**job_body, "a\ud800": 1}), "/", "string")


@ON_BOTH
def test_a_cost_model_that_cannot_be_kept_is_refused(client: TestClient) -> None:
    for value in (NAN, "\ud800", 2**70):
        body = {"document": {"fingerprint": "a", "x": value}}
        refused(send(client, "POST", "/v1/cost-models", body), "/document", "/x: ")
    body = {"document": {"fingerprint": "a" * 121}}
    refused(send(client, "POST", "/v1/cost-models", body), "/document/fingerprint", "120")
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    body = {"document": {"fingerprint": "a", "x": deep}}
    refused(send(client, "POST", "/v1/cost-models", body), "/document", "nested deeper than 64")


@pytest.mark.parametrize("value", ["x", {"a": 1}, {"format": "fp8", "block": []}, [1]])
def test_a_model_whose_quantisation_is_none_is_refused(client: TestClient, value: object) -> None:
    body = engine_body("other")
    body["model"] = {**body["model"], "quantisation": value}
    refused(send(client, "POST", "/v1/engines", body), "/model", "")


odd = st.one_of(
    st.sampled_from([2**63, 2**70, -1, 10**400, 1e308, -1e308, 1e-308, INF, -INF, NAN, 0, "0"]),
    st.text(max_size=3),
    st.sampled_from(["\ud800", "\0", None, True, [], {}, [[]], {"a": NAN}]),
)


@ON_BOTH
@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_value_of_any_field_is_a_5xx(
    client: TestClient, job_body: Json, data: st.DataObject
) -> None:
    engine_id = register(client, f"chat-{next(NUMBERS)}")
    bodies = {
        "/v1/tuning-jobs": job_body,
        "/v1/engines": engine_body("other"),
        f"/v1/engines/{engine_id}/heartbeats": beat(),
        f"/v1/engines/{engine_id}/policy/versions/1:acknowledge": {
            "result": "refused",
            "policy": POLICY,
            "seconds": 0.5,
            "lost_requests": 0,
            "message": "x",
        },
    }
    path = data.draw(st.sampled_from(sorted(bodies)))
    body = json.loads(json.dumps(bodies[path]))
    holder, name = body, data.draw(st.sampled_from(sorted(body)))
    while isinstance(holder[name], dict) and holder[name] and data.draw(st.booleans()):
        holder, name = holder[name], data.draw(st.sampled_from(sorted(holder[name])))
    holder[name] = data.draw(odd)
    answer = send(client, "POST", path, body)
    assert answer.status_code < 500, (path, body, answer.text)
