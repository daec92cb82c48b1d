"""Tuning jobs over REST, before any worker touches them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.services import jobs
from api.services.job_moves import COMMAND_LINE
from api.web.settings import ServiceSettings
from store import Database
from store.models import JobState
from tests.api.conftest import ADMIN
from tests.api.live import running_service

Json = dict[str, Any]


@pytest.fixture
def service_url(current_url: str) -> str:
    """Both databases: row locks decide what happens here."""
    return current_url


def _create(client: httpx.Client, body: Json, **headers: str) -> Any:
    return client.post("/v1/tuning-jobs", json=body, headers=headers)


def _trial(number: int) -> Json:
    return {
        "number": number,
        "state": "complete",
        "fidelity": "simulated",
        "metrics": {"p95_ttft_ms": 10.0 + number},
    }


def test_a_job_is_accepted_with_its_location_and_when_to_look_again(
    client: TestClient, job_body: Json
) -> None:
    answer = _create(client, job_body)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/tuning-jobs/{answer.json()['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    found = client.get(answer.headers["location"])
    assert found.json()["state"] == "queued"
    assert "retry-after" in found.headers


def test_plans_may_use_all_devices_of_described_hardware_unless_it_is_said(
    client: TestClient, job_body: Json
) -> None:
    assert _create(client, job_body).json()["spec"]["num_devices"] == 2
    del job_body["num_devices"]
    assert _create(client, job_body).json()["spec"]["num_devices"] == 8


def test_everything_that_cannot_be_read_is_named_at_once(
    client: TestClient, job_body: Json
) -> None:
    wrong = {"sla": "p95_speed<=1", "model_dir": "/nowhere", "workload": "poisson:rate=fast"}
    answer = _create(client, {**job_body, **wrong})
    assert answer.status_code == 422
    assert {e["pointer"] for e in answer.json()["errors"]} == {"/sla", "/model_dir", "/workload"}
    assert client.get("/v1/tuning-jobs").json() == []


@pytest.mark.parametrize(
    ("changes", "pointer", "variable"),
    [
        ({"workload": "auto:/dev/zero"}, "/workload", "GEARSHIFT_TRACE_ROOT"),
        ({"workload": "csv:../trace.csv,seconds=5"}, "/workload", "GEARSHIFT_TRACE_ROOT"),
        ({"model_dir": "/etc"}, "/model_dir", "GEARSHIFT_MODEL_ROOT"),
        ({"model_dir": "x/../../etc", "hardware": "local"}, "/model_dir", "GEARSHIFT_MODEL_ROOT"),
        ({"options": {"model_dir": "/etc"}}, "/options", "GEARSHIFT_MODEL_ROOT"),
        ({"options": {"workload": "auto:/dev/zero"}}, "/options", "GEARSHIFT_TRACE_ROOT"),
    ],
)
def test_a_path_outside_the_folders_is_refused_with_the_setting_that_names_them(
    client: TestClient, job_body: Json, changes: Json, pointer: str, variable: str
) -> None:
    answer = _create(client, {**job_body, **changes})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert variable in error["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer", "told"),
    [
        ({"workload": "csv:none.csv"}, "/workload", "none.csv: there is no such file"),
        ({"workload_id": "csv:none.csv"}, "/workload_id", "there is no such file"),
        ({"model": "none"}, "/model", "there is no such file"),
        ({"model": "empty", "hardware": "local"}, "/model", "has no config.json"),
        ({"model_dir": "none"}, "/model_dir", "there is no such file"),
    ],
)
def test_a_file_that_is_not_there_is_refused_under_the_key_that_was_sent(
    client: TestClient, job_body: Json, tmp_path: Path, changes: Json, pointer: str, told: str
) -> None:
    (tmp_path / "empty").mkdir()
    aliases = {"model": "model_dir", "workload_id": "workload"}
    body = {**job_body, "hardware": "local", **changes}
    for sent in changes:
        body.pop(aliases.get(sent, ""), None)
    (error,) = _create(client, body).json()["errors"]
    assert error["pointer"] == pointer
    assert told in error["detail"]


def test_jobs_that_name_pipes_and_devices_hold_nobody_up(
    settings: ServiceSettings, database: Database, job_body: Json, tmp_path: Path
) -> None:
    """Over real HTTP: 46 of them once kept /healthz silent for 40 s."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "endless")
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "config.json")
    odd: list[Json] = [
        {"workload": f"auto:{tmp_path / 'pipe'}"},
        {"workload": f"csv:{tmp_path / 'endless'}"},
        {"model_dir": str(tmp_path / "odd")},
        {"model_dir": str(tmp_path / "odd"), "hardware": "local"},
    ]
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with (
        running_service(settings) as url,
        httpx.Client(base_url=url, headers=headers, timeout=20) as http,
        ThreadPoolExecutor(46) as pool,
    ):
        bodies = [{**job_body, **odd[number % len(odd)]} for number in range(46)]
        answers = pool.map(lambda body: http.post("/v1/tuning-jobs", json=body), bodies)
        assert http.get("/healthz").status_code == 200
        assert {answer.status_code for answer in answers} == {202}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"magic": 1}, "magic"), ({"budget": "half an hour"}, "of the form device_minutes=30")],
)
def test_an_option_that_the_tuner_cannot_take_is_refused_by_name(
    client: TestClient, job_body: Json, options: Json, words: str
) -> None:
    answer = _create(client, {**job_body, "options": options})
    assert answer.status_code == 422
    assert words in answer.json()["errors"][0]["detail"]


def test_a_budget_of_device_time_is_kept_with_the_job(client: TestClient, job_body: Json) -> None:
    answer = _create(client, {**job_body, "options": {"budget": "device_minutes=30"}})
    assert answer.status_code == 202
    assert answer.json()["spec"]["options"] == {"budget": "device_minutes=30"}


def test_trials_that_stand_among_the_options_are_those_that_are_run(
    client: TestClient, job_body: Json
) -> None:
    answer = _create(client, {**job_body, "options": {"trials": 7}})
    assert answer.json()["num_trials"] == 7


@pytest.mark.parametrize("engine", [{"engine": "vllm"}, {"engine_command": "touch /tmp/x"}])
def test_nobody_names_a_command_over_rest(client: TestClient, job_body: Json, engine: Json) -> None:
    answer = _create(client, {**job_body, "hardware": "local", "options": engine})
    assert answer.status_code == 422
    assert "engine" in str(answer.json()["errors"])


def test_the_same_key_and_body_give_the_first_answer_again(
    client: TestClient, job_body: Json
) -> None:
    first = _create(client, job_body, **{"Idempotency-Key": "k1"})
    again = _create(client, job_body, **{"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert again.headers["location"] == first.headers["location"]
    assert len(client.get("/v1/tuning-jobs").json()) == 1


def test_the_same_key_with_another_body_is_422(client: TestClient, job_body: Json) -> None:
    _create(client, job_body, **{"Idempotency-Key": "k1"})
    answer = _create(client, {**job_body, "seed": 7}, **{"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_an_empty_key_is_none_and_would_be_everybodys(client: TestClient, job_body: Json) -> None:
    assert _create(client, job_body, **{"Idempotency-Key": ""}).status_code == 422
    assert client.get("/v1/tuning-jobs").json() == []


def test_a_refused_request_does_not_use_up_its_key(client: TestClient, job_body: Json) -> None:
    key = {"Idempotency-Key": "k1"}
    assert _create(client, {**job_body, "sla": "nonsense"}, **key).status_code == 422
    assert _create(client, job_body, **key).status_code == 202


def test_one_key_from_many_threads_makes_one_job(client: TestClient, job_body: Json) -> None:
    ids: list[str] = []

    def post() -> None:
        ids.append(_create(client, job_body, **{"Idempotency-Key": "k1"}).json()["id"])

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1


def test_pages_follow_the_link_header_to_the_end(client: TestClient, job_body: Json) -> None:
    made = {_create(client, job_body).json()["id"] for _ in range(5)}
    seen: list[str] = []
    answer = client.get("/v1/tuning-jobs", params={"limit": 2})
    seen += [job["id"] for job in answer.json()]
    while "next" in answer.links:
        answer = client.get(answer.links["next"]["url"])
        seen += [job["id"] for job in answer.json()]
    assert seen == sorted(made, reverse=True)


def test_a_model_of_a_name_that_no_file_may_have_is_refused_by_its_field(
    client: TestClient, job_body: Json
) -> None:
    answer = _create(client, {**job_body, "model_dir": "m" * 300, "hardware": "8xh100"})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/model_dir"]


def test_a_foreign_cursor_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/tuning-jobs", params={"cursor": "%%%"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_cursor")


def test_a_queued_job_is_cancelled_at_once_and_twice_is_as_once(
    client: TestClient, job_body: Json
) -> None:
    url = f"/v1/tuning-jobs/{_create(client, job_body).json()['id']}"
    assert client.post(f"{url}:cancel").json()["state"] == "cancelled"
    assert client.post(f"{url}:cancel").json()["state"] == "cancelled"


def test_a_running_job_goes_to_cancelling_and_keeps_its_trials(
    client: TestClient, job_body: Json, database: Database
) -> None:
    job_id = _create(client, job_body).json()["id"]
    with database.begin() as uow:
        jobs.move(uow, uow.jobs.get(job_id), JobState.RUNNING, "trials")
        uow.trials.add(job_id, _trial(0))
    answer = client.post(f"/v1/tuning-jobs/{job_id}:cancel").json()
    assert (answer["state"], answer["trials_done"]) == ("cancelling", 1)


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.CANCELLING])
def test_a_job_that_a_killed_command_left_is_cancelled_at_once_and_can_be_removed(
    client: TestClient, database: Database, state: JobState
) -> None:
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=3, created_by=COMMAND_LINE)
        jobs.move(uow, job, state, "run by gearshift tune")
    url = f"/v1/tuning-jobs/{job.id}"
    assert client.post(f"{url}:cancel").json()["state"] == "cancelled"
    assert client.delete(url).status_code == 204


def test_only_a_finished_job_can_be_deleted_and_none_can_be_cancelled_after(
    client: TestClient, job_body: Json, database: Database
) -> None:
    job_id = _create(client, job_body).json()["id"]
    url = f"/v1/tuning-jobs/{job_id}"
    assert client.delete(url).status_code == 409
    with database.begin() as uow:
        jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")
    assert client.post(f"{url}:cancel").status_code == 409
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


def test_trials_come_in_order_with_their_metrics(
    client: TestClient, job_body: Json, database: Database
) -> None:
    job_id = _create(client, job_body).json()["id"]
    with database.begin() as uow:
        for number in (2, 0, 1):
            uow.trials.add(job_id, _trial(number))
    answer = client.get(f"/v1/tuning-jobs/{job_id}/trials", params={"limit": 2})
    assert [t["record"] for t in answer.json()] == [_trial(0), _trial(1)]
    rest = client.get(answer.links["next"]["url"]).json()
    assert [t["number"] for t in rest] == [2]


def test_a_job_without_a_report_says_so(client: TestClient, job_body: Json) -> None:
    job_id = _create(client, job_body).json()["id"]
    answer = client.get(f"/v1/tuning-jobs/{job_id}/report")
    assert answer.status_code == 409
    assert "queued" in answer.json()["detail"]


def _events(text: str) -> list[tuple[int, str]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("id: ")]
    lines = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [(int(line["id"]), line["event"]) for line in lines]


def test_the_event_stream_resumes_after_the_last_id_and_ends_with_the_job(
    client: TestClient, job_body: Json, database: Database
) -> None:
    job_id = _create(client, job_body).json()["id"]
    with database.begin() as uow:
        for number in range(3):
            uow.jobs.append_event(job_id, "trial", {"number": number})
        jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")
    url = f"/v1/tuning-jobs/{job_id}/events"
    whole = client.get(url)
    assert whole.headers["content-type"].startswith("text/event-stream")
    names = ["state", "trial", "trial", "trial", "state"]
    assert _events(whole.text) == list(enumerate(names, start=1))
    rest = client.get(url, headers={"Last-Event-ID": "3"})
    assert [seq for seq, _ in _events(rest.text)] == [4, 5]


def test_a_quiet_stream_sends_comments_and_then_the_late_events(
    settings: ServiceSettings, database: Database, job_body: Json
) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with (
        running_service(settings) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as http,
    ):
        job_id = _create(http, job_body).json()["id"]
        with http.stream("GET", f"/v1/tuning-jobs/{job_id}/events") as stream:
            lines = stream.iter_lines()
            before = list(iter(lambda: next(lines), ": keep-alive"))
            with database.begin() as uow:
                jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")
            after = list(lines)
    assert _events("\n".join(before)) == [(1, "state")]
    assert _events("\n".join(after).strip()) == [(2, "state")]


def test_every_change_is_in_the_audit_chain(
    client: TestClient, job_body: Json, database: Database
) -> None:
    job_id = _create(client, job_body, **{"X-Request-Id": "req-1"}).json()["id"]
    client.post(f"/v1/tuning-jobs/{job_id}:cancel")
    client.delete(f"/v1/tuning-jobs/{job_id}")
    entries = client.get("/v1/audit", params={"resource": f"tuning-jobs/{job_id}"}).json()
    assert [e["action"] for e in entries] == ["job.delete", "job.cancel", "job.create"]
    assert entries[-1]["request_id"] == "req-1"
    with database.read() as uow:
        assert uow.audit.verify().is_whole
