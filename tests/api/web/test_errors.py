"""Every refusal is a problem document, whatever its cause."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from migrations.runner import downgrade
from store import Database
from tests.api.conftest import ADMIN


def _is_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["trace_id"] == answer.headers["x-request-id"]
    assert isinstance(body["errors"], list)


def test_an_unknown_path_is_a_problem(client: TestClient) -> None:
    _is_problem(client.get("/v1/nothing"), 404, "not_found")


def test_a_body_without_its_type_is_told_which_type_to_name(client: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/v1/tuning-jobs", content="{}", headers=form)
    _is_problem(answer, 422, "invalid_request")
    assert "Content-Type must be application/json" in answer.json()["errors"][0]["detail"]


def test_an_unknown_job_is_a_problem(client: TestClient) -> None:
    _is_problem(client.get("/v1/tuning-jobs/job_none"), 404, "not_found")


def test_a_wrong_method_is_a_problem_that_keeps_the_allow_header(client: TestClient) -> None:
    answer = client.put("/v1/tuning-jobs")
    _is_problem(answer, 405, "method_not_allowed")
    assert "allow" in answer.headers


def test_a_wrong_body_names_each_field_by_pointer(client: TestClient) -> None:
    answer = client.post("/v1/tuning-jobs", json={"num_devices": 0, "color": "red"})
    _is_problem(answer, 422, "invalid_request")
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert {"/num_devices", "/color", "/model", "/workload", "/sla"} <= pointers


def test_a_misspelt_field_is_told_with_the_one_that_is_near(client: TestClient) -> None:
    answer = client.post("/v1/tuning-jobs", json={"devices": 8, "modle": "x", "zzz": 1})
    details = {e["pointer"]: e["detail"] for e in answer.json()["errors"]}
    assert details["/devices"] == "unknown field 'devices' (did you mean 'num_devices'?)"
    assert details["/modle"] == "unknown field 'modle' (did you mean 'model'?)"
    assert details["/zzz"] == "unknown field 'zzz'"


def test_a_body_that_is_no_json_is_told_by_line_and_column(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/tuning-jobs", content='{"seed": 1,\n "trials": }', headers=headers)
    _is_problem(answer, 422, "invalid_request")
    (error,) = answer.json()["errors"]
    assert error["pointer"] == ""
    assert "at line 2, column 12" in error["detail"]


def test_a_crash_is_a_problem_without_its_details(
    settings: ServiceSettings, database: Database
) -> None:
    app = create_app(settings)

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("secret detail")

    with TestClient(app) as client:
        answer = client.get("/crash", headers={"Authorization": f"Bearer {ADMIN}"})
    _is_problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_a_plain_request_id_is_taken_over_and_another_is_replaced(client: TestClient) -> None:
    kept = client.get("/healthz", headers={"X-Request-Id": "order-66"})
    assert kept.headers["x-request-id"] == "order-66"
    replaced = client.get("/healthz", headers={"X-Request-Id": "a b\tc"})
    assert replaced.headers["x-request-id"] != "a b\tc"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_health_metrics_and_the_description_need_no_key(anonymous: TestClient, path: str) -> None:
    assert anonymous.get(path).status_code == 200


def test_the_description_is_openapi_3_1_with_an_operation_id_for_each_call(
    anonymous: TestClient,
) -> None:
    document = anonymous.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = [op for path in document["paths"].values() for op in path.values()]
    ids = [op["operationId"] for op in operations]
    assert len(set(ids)) == len(ids)
    assert all("_v1_" not in name for name in ids), "generated names are not stable"


def test_a_service_over_an_old_schema_is_alive_but_not_ready(
    settings: ServiceSettings, database: Database
) -> None:
    downgrade(database.engine, "0001")
    app = create_app(settings)
    client = TestClient(app)  # not entered: no start-up, so no tables are touched
    assert client.get("/healthz").status_code == 200
    _is_problem(client.get("/readyz"), 503, "not_ready")
    assert ADMIN not in client.get("/readyz").text
    app.state.context.database.close()


def test_the_service_imports_neither_torch_nor_the_workflow_engine() -> None:
    code = (
        "import api.app, sys; "
        "found = [m for m in ('torch', 'sklearn', 'optuna', 'dbos') if m in sys.modules]; "
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
