"""Uploaded traces over REST, and jobs that name them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.documents.places import Place, Places
from api.documents.tuning_spec import tuning_spec
from api.jobs.kept_traces import KeptTraces
from api.jobs.tuner_backend import TunerBackend
from api.web.settings import ServiceSettings
from store import Database
from store.workloads import WorkloadRepository

Json = dict[str, Any]
HEADER = "arrival_s,input_tokens,output_tokens\n"
TRACE = HEADER + "".join(f"{i / 2},{8 * (i % 3 + 1)},{i % 2 + 1}\n" for i in range(300))


def _upload(client: TestClient, trace: str = TRACE, **params: Any) -> Any:
    headers = {"Content-Type": "text/csv", **params.pop("headers", {})}
    return client.post("/v1/workloads", content=trace, headers=headers, params=params)


def test_an_uploaded_trace_is_kept_with_what_is_known_of_it(client: TestClient) -> None:
    answer = _upload(client, name="calm.csv")
    assert answer.status_code == 201, answer.text
    told = client.get(answer.headers["location"]).json()
    assert told == answer.json()
    assert (told["name"], told["form"], told["rows"]) == ("calm.csv", "csv", 300)
    assert told["sha256"] == hashlib.sha256(TRACE.encode()).hexdigest()
    assert (told["span_s"], told["gap_cv"]) == (149.5, 0.0)
    assert told["peak_to_mean_per_minute"] == pytest.approx(1.2)
    assert sum(map(sum, told["joint_histogram"]["counts"])) == 300
    assert told["over_time"] == {"bin_s": 1.0, "counts": [2] * 150}
    (listed,) = client.get("/v1/workloads").json()
    assert listed["id"] == told["id"]
    assert "joint_histogram" not in listed


def test_the_same_key_and_trace_give_the_first_answer_again(client: TestClient) -> None:
    key = {"headers": {"Idempotency-Key": "k"}}
    first, again = _upload(client, **key), _upload(client, **key)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("trace", "form", "line", "told"),
    [
        (HEADER + "0,5,6\n1,many,6\n", "auto", 3, "input_tokens 'many'"),
        ('{"timestamp": 0, "input_length": 5}\nnot json\n', "mooncake", 2, "JSON"),
        ("", "auto", None, "is empty"),
        (HEADER + "0,5,0\n", "csv", None, "no request"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_with_its_line(
    client: TestClient, trace: str, form: str, line: int | None, told: str
) -> None:
    answer = _upload(client, trace, form=form, name="t.csv")
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert (problem["code"], problem.get("line")) == ("invalid_trace", line)
    assert told in problem["detail"]
    assert "/tmp" not in answer.text
    assert client.get("/v1/workloads").json() == []


def test_a_form_of_parts_and_an_unknown_format_are_refused_with_the_way_out(
    client: TestClient,
) -> None:
    answer = client.post("/v1/workloads", files={"file": TRACE})
    assert (answer.status_code, "--data-binary" in answer.text) == (415, True)
    answer = _upload(client, form="parquet")
    assert (answer.status_code, "burstgpt" in answer.text) == (422, True)


def test_a_trace_beyond_the_limit_is_413_and_within_it_may_pass_other_bodies(
    client: TestClient, settings: ServiceSettings
) -> None:
    too_long = {"headers": {"Content-Length": str(settings.max_upload_bytes + 1)}}
    assert _upload(client, "", **too_long).status_code == 413
    mib = 2**20
    assert settings.max_body_bytes < 17 * mib < settings.max_upload_bytes
    row = "0.5,100,10," + "x" * 100_000 + "\n"
    long = HEADER.strip() + ",note\n" + row * 170
    assert _upload(client, long).json()["rows"] == 170


def test_a_job_names_a_workload_by_its_id_and_reads_it_in_its_own_process(
    client: TestClient, job_body: Json, database: Database, tmp_path: Path
) -> None:
    workload = _upload(client).json()["id"]
    named = {**job_body, "workload_id": f"{workload},requests=20"}
    del named["workload"]
    job = client.post("/v1/tuning-jobs", json=named).json()
    assert job["workload_id"] == workload
    nowhere = Place(noun="trace", variable="GEARSHIFT_TRACE_ROOT", folders=())
    models = Place(noun="model", variable="GEARSHIFT_MODEL_ROOT", folders=(tmp_path,))
    traces = KeptTraces(database, tmp_path / "uploads")
    backend = TunerBackend(Places(models=models, traces=nowhere), traces)
    spec = {**job["spec"], "num_devices": 1}
    prepared = backend.prepare(
        spec,
        cost_model=None,
        groundwork=None,
        devices=(),
        on_event=lambda *_: None,
        is_cancelled=lambda: False,
    )
    prepared.close()
    kept = tmp_path / "uploads" / workload
    assert kept.read_text() == TRACE
    kept.write_text("")  # as after a power cut, which may leave a name and nothing in it
    traces.bring(tuning_spec(job["spec"]))
    assert kept.read_text() == TRACE
    answer = client.delete(f"/v1/workloads/{workload}")
    assert (answer.status_code, job["id"] in answer.json()["detail"]) == (409, True)
    client.post(f"/v1/tuning-jobs/{job['id']}:cancel")
    client.delete(f"/v1/tuning-jobs/{job['id']}")
    assert client.delete(f"/v1/workloads/{workload}").status_code == 204
    assert client.get(f"/v1/workloads/{workload}").status_code == 404
    actions = [entry["action"] for entry in client.get("/v1/audit").json()]
    assert [a for a in actions if "workload" in a] == ["workload.delete", "workload.create"]
    other = _upload(client, HEADER + "0,5,5\n1,5,5\n").json()["id"]
    traces.bring(tuning_spec({**job["spec"], "workload": other}))
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [other]


def test_a_trace_is_brought_though_another_job_brings_its_own_meanwhile(
    client: TestClient,
    job_body: Json,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (_upload(client, HEADER + f"0,{n},5\n1,5,5\n").json()["id"] for n in (6, 7))
    job = client.post("/v1/tuning-jobs", json={**job_body, "workload": one}).json()
    folder = tmp_path / "uploads"
    folder.mkdir()
    left = folder / "part-of-a-killed-worker"
    left.touch()
    os.utime(left, (0, 0))
    read = WorkloadRepository.read

    def bring(workload: str) -> None:
        spec = tuning_spec({**job["spec"], "workload": workload})
        KeptTraces(database, folder).bring(spec)

    def read_slowly(self: WorkloadRepository, workload: str) -> Iterator[bytes]:
        yield from read(self, workload)
        if workload == one:
            bring(other)

    monkeypatch.setattr(WorkloadRepository, "read", read_slowly)
    bring(one)
    assert {path.name for path in folder.iterdir()} == {one, other}


def test_a_job_that_names_a_workload_wrongly_is_refused(client: TestClient, job_body: Json) -> None:
    workload = _upload(client).json()["id"]
    for name, told in (
        (f"wl_{0:021x}", "does not exist"),
        (f"{workload},speed=3", "unknown word 'speed'"),
        (f"{workload},seconds=x", "not a number"),
    ):
        answer = client.post("/v1/tuning-jobs", json={**job_body, "workload": name})
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["pointer"]) == (422, "/workload")
        assert told in error["detail"]
