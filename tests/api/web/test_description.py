"""The description names every refusal, in the form in which it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.server.shapes import Problem
from store import Database
from tests.api.worlds import add_recommendation, engine_body, register
from tests.examples import check_examples, list_operations

Json = dict[str, Any]


@pytest.fixture
def document(client: TestClient) -> Json:
    found: Json = client.get("/openapi.json").json()
    return found


def operations(document: Json) -> list[tuple[str, str, Json]]:
    return [(p, m, op) for p, item in document["paths"].items() for m, op in item.items()]


def check(document: Json, operation: Json, answer: Any) -> None:
    """See that an answer is described: its status, its media type and its form."""
    described = operation["responses"][str(answer.status_code)]
    described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
    media_type = answer.headers["content-type"]
    assert described["content"][media_type]["schema"]["$ref"].endswith("/Problem")
    Problem.model_validate(answer.json(), strict=True)


def test_every_operation_under_v1_describes_its_401(client: TestClient, document: Json) -> None:
    tried = 0
    for path, method, operation in operations(document):
        if path.startswith("/v1"):
            answer = client.request(method, path, headers={"Authorization": "Bearer wrong"})
            assert answer.status_code == 401, path
            check(document, operation, answer)
            tried += 1
    assert tried > 30


def test_refusals_are_described_in_the_form_in_which_they_come(
    client: TestClient, document: Json
) -> None:
    engine = f"/v1/engines/{register(client)}"
    by_id = {operation["operationId"]: operation for _, _, operation in operations(document)}
    stale = {"If-Match": '"old"'}
    reader = client.post("/v1/api-keys", json={"name": "r", "scopes": ["read"]}).json()["secret"]
    for operation, status, answer in (
        ("get_engine", 404, client.get("/v1/engines/eng_0")),
        ("list_engines", 422, client.get("/v1/engines?limit=0")),
        ("patch_engine_policy", 428, client.patch(f"{engine}/policy", json={})),
        ("patch_engine_policy", 412, client.patch(f"{engine}/policy", json={}, headers=stale)),
        ("roll_back_engine_policy", 409, client.post(f"{engine}:rollback", json={})),
        ("create_tuning_job", 422, client.post("/v1/tuning-jobs", json={})),
        (
            "list_audit",
            403,
            client.get("/v1/audit", headers={"Authorization": f"Bearer {reader}"}),
        ),
        (
            "create_tuning_job",
            413,
            client.post("/v1/tuning-jobs", content=b"", headers={"Content-Length": str(10**9)}),
        ),
    ):
        assert answer.status_code == status, (operation, answer.text)
        check(document, by_id[operation], answer)


def test_no_refusal_is_described_as_anything_but_a_problem(document: Json) -> None:
    responses = document["components"]["responses"]
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                found = responses[response["$ref"].rpartition("/")[2]]
                assert list(found["content"]) == ["application/problem+json"]


def test_a_wrong_method_is_told_all_that_the_path_allows(client: TestClient) -> None:
    for path, allowed in (
        ("/v1/engines", "GET, POST"),
        ("/v1/engines/a/policy", "GET, PATCH"),
        ("/v1/tuning-jobs/a:cancel", "POST"),
        ("/v1/tuning-jobs/a", "DELETE, GET"),
    ):
        answer = client.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("value", "is_taken"), [(1, True), (1.0, True), ("1", False), (True, False)]
)
def test_numbers_are_not_made_of_anything_else(
    client: TestClient, value: object, is_taken: bool
) -> None:
    answer = client.post("/v1/engines", json=engine_body(devices=[value]))
    assert answer.status_code == (201 if is_taken else 422)


def test_bounds_of_numbers_are_described(document: Json) -> None:
    schemas = document["components"]["schemas"]
    version = schemas["RollbackRequest"]["properties"]["version"]["anyOf"][0]
    assert (version["minimum"], version["maximum"]) == (1, 2**31 - 1)
    devices = schemas["EngineRegister"]["properties"]["devices"]["anyOf"][0]["items"]
    assert devices["minimum"] == 0
    assert "exclusiveMaximum" in devices


def test_every_operation_shows_examples_that_its_schemas_take(document: Json) -> None:
    assert check_examples(document) > 50


def test_the_bodies_that_are_shown_are_taken(
    client: TestClient, document: Json, database: Database
) -> None:
    by_id = {
        operation["operationId"]: (method, path, operation["requestBody"]["content"])
        for path, method, operation in operations(document)
        if "requestBody" in operation
    }
    ids = {"recommendation_id": add_recommendation(database), "version": "1"}
    tried = set()
    for name, keeps in (
        ("create_api_key", "key_id"),
        ("rotate_api_key", ""),
        ("create_cost_model", ""),
        ("create_tuning_job", ""),
        ("register_engine", "engine_id"),
        ("acknowledge_policy_version", ""),
        ("send_heartbeat", ""),
        ("create_rollout", ""),
        ("patch_engine_policy", ""),
        ("roll_back_engine_policy", ""),
        ("apply_recommendation", ""),
        ("create_workload", ""),
        ("find_capacity", ""),
        ("observe_engine", ""),
        ("bind_engine", ""),
    ):
        method, path, content = by_id[name]
        media_type, media = next(iter(content.items()))
        body = media["example"]
        if name in ("apply_recommendation", "create_rollout"):
            body = {**body, "engine_id": ids["engine_id"]}
        answer = client.request(
            method,
            path.format(**ids),
            content=body if isinstance(body, str) else json.dumps(body),
            headers={"Content-Type": media_type, "If-Match": "*"},
        )
        assert answer.is_success, (name, answer.text)
        if name == "register_engine":
            credential = answer.json()["credential"]
            client.headers["Gearshift-Engine-Credential"] = credential
        if keeps:
            ids[keeps] = answer.json()["id"]
        tried.add(name)
    assert by_id.keys() - tried == {"predict_with_cost_model"}


def test_no_operation_changes_its_name_unseen(document: Json) -> None:
    """Clients are made from the names: add to the list, and rename nothing in it."""
    known = Path(__file__).with_name("operations.txt").read_text().splitlines()
    assert list_operations(document) == known
