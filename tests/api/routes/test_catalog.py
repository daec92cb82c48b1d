"""``GET /v1/models``, ``/hardware``, ``/backends`` and ``/links``, and jobs that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from api.cli.main import create_app
from tests.tuner.catalogs import write, write_catalog

Json = dict[str, Any]
KINDS = ("models", "hardware", "backends", "links")


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_those_of_the_command_line(
    kind: str,
    client: TestClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(write_catalog(tmp_path / "own")))
    answer = client.get(f"/v1/{kind}")
    assert answer.status_code == 200
    listed = CliRunner().invoke(create_app(), ["list", kind, "--json"])
    assert answer.json() == json.loads(listed.stdout)[kind]


def test_a_backend_is_shown_as_on_the_command_line(client: TestClient) -> None:
    answer = client.get("/v1/backends/vllm@0.12", params={"hardware": "8xb200"})
    assert answer.status_code == 200
    words = ["backends", "show", "vllm@0.12", "--hardware", "8xb200", "--json"]
    assert answer.json() == json.loads(CliRunner().invoke(create_app(), words).stdout)
    unknown = client.get("/v1/backends/vllm@0.1")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    wrong = client.get("/v1/backends/vllm", params={"hardware": "8xh2000"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/query/hardware")


def test_a_job_names_a_release_and_settings(client: TestClient, job_body: Json) -> None:
    choice = "vllm@0.12,async_scheduling=on"
    answer = client.post("/v1/tuning-jobs", json=_named(job_body, backend=choice))
    assert answer.status_code == 202, answer.text
    assert answer.json()["spec"]["backend"] == choice
    refused = client.post("/v1/tuning-jobs", json=_named(job_body, backend="vllm,asink=on"))
    assert refused.json()["errors"][0]["pointer"] == "/backend"


def test_lists_need_a_key(anonymous: TestClient) -> None:
    assert {anonymous.get(f"/v1/{kind}").status_code for kind in KINDS} == {401}


def test_a_broken_file_is_in_the_list_and_a_missing_folder_is_the_services_fault(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "links", "wire", "{")
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(tmp_path))
    broken = next(item for item in client.get("/v1/links").json() if item["name"] == "wire")
    assert "wire.json: cannot be read as JSON" in broken["error"]
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(tmp_path / "nowhere"))
    answer = client.get("/v1/links")
    assert (answer.status_code, answer.json()["code"]) == (500, "wrong_catalog")


def _named(job_body: Json, **changes: Any) -> Json:
    body = {key: value for key, value in job_body.items() if key != "model_dir"}
    return {**body, "model": "llama-3.1-70b", "dtype": "fp8", "backend": "vllm", **changes}


def test_a_job_on_described_hardware_names_its_model_and_backend(
    client: TestClient, job_body: Json
) -> None:
    answer = client.post("/v1/tuning-jobs", json=_named(job_body))
    assert answer.status_code == 202, answer.text
    spec = answer.json()["spec"]
    assert (spec["model_dir"], spec["backend"]) == ("llama-3.1-70b", "vllm")


def test_a_job_may_name_the_users_own(
    client: TestClient, job_body: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_CATALOG", str(write_catalog(tmp_path / "own")))
    own = {"model": "mini", "hardware": "8xchip9@fastlink", "backend": "ours", "dtype": None}
    answer = client.post("/v1/tuning-jobs", json=_named(job_body, **own))
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"model": "llama-3.1-7b"}, "/model", "did you mean 'llama-3.1-70b'"),
        ({"hardware": "8xh2000"}, "/hardware", "did you mean 'h200'"),
        ({"hardware": "1xh200"}, "/hardware", "2 devices asked for, 1xh200 has 1"),
        ({"backend": "vlm"}, "/backend", "did you mean 'vllm'"),
        ({"hardware": "local"}, "/backend", "described hardware"),
        ({"dtype": "fb8"}, "/dtype", "did you mean 'fp8'"),
        ({"quantization": "int8"}, "/quantization", "no weights are loaded on described"),
        ({"workload": "poison:rate=1"}, "/workload", "did you mean 'poisson'"),
        ({"sla": "p95_tfft<=1"}, "/sla", "did you mean 'p95_ttft_ms'"),
        ({"options": {"backend": "sglan"}}, "/options", "'sglan' is not known"),
        ({"options": {"max_model_len": 10**6}}, "/options", "131072"),
    ],
)
def test_a_wrong_name_is_refused_at_once_with_its_field(
    changes: Json, pointer: str, detail: str, client: TestClient, job_body: Json
) -> None:
    answer = client.post("/v1/tuning-jobs", json=_named(job_body, **changes))
    assert answer.status_code == 422
    found = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert detail in found[pointer]


def test_a_name_is_no_model_for_this_machine(client: TestClient, job_body: Json) -> None:
    body = _named(job_body, hardware="local", backend=None, dtype=None)
    answer = client.post("/v1/tuning-jobs", json=body)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/model"]


def test_a_job_on_described_hardware_is_about_vllm_unless_it_names_another(
    client: TestClient, job_body: Json
) -> None:
    answer = client.post("/v1/tuning-jobs", json=_named(job_body, backend=None))
    assert answer.json()["spec"]["backend"] == "vllm"
    ours = client.post("/v1/tuning-jobs", json=_named(job_body, backend="gearshift"))
    assert ours.json()["spec"]["backend"] == "gearshift"
