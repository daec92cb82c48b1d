"""Keys: who may do what, and how a refusal says what is missing."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api.app import create_app
from api.web.auth import ensure_first_key
from api.web.settings import ServiceSettings
from store import Database
from store.models.base import utc_now
from tests.waiting import wait_until


def _key(client: TestClient, *scopes: str, **changes: Any) -> dict[str, str]:
    answer = client.post("/v1/api-keys", json={"name": "k", "scopes": scopes, **changes})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['secret']}"}


def test_no_key_is_401_with_a_challenge(anonymous: TestClient) -> None:
    answer = anonymous.get("/v1/tuning-jobs")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "missing_key"


def test_an_unknown_key_is_401(anonymous: TestClient) -> None:
    answer = anonymous.get("/v1/tuning-jobs", headers={"Authorization": "Bearer gs_wrong"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unknown_key")


def test_a_missing_scope_is_403_and_named(client: TestClient, job_body: dict[str, Any]) -> None:
    reader = _key(client, "read")
    answer = client.post("/v1/tuning-jobs", json=job_body, headers=reader)
    assert (answer.status_code, answer.json()["required_scope"]) == (403, "tune")
    assert client.get("/v1/tuning-jobs", headers=reader).status_code == 200


@pytest.mark.parametrize("scope", ["tune", "apply"])
def test_tune_and_apply_include_read_but_not_each_other(client: TestClient, scope: str) -> None:
    headers = _key(client, scope)
    assert client.get("/v1/tuning-jobs", headers=headers).status_code == 200
    assert client.get("/v1/api-keys", headers=headers).status_code == 403
    other = {"tune": "/v1/engines/eng_x:rollback", "apply": "/v1/tuning-jobs/job_x:cancel"}[scope]
    assert client.post(other, json={}, headers=headers).status_code == 403


def test_an_expired_key_is_refused(client: TestClient) -> None:
    headers = _key(client, "read")
    newest = client.get("/v1/api-keys").json()[-1]["id"]
    client.post(f"/v1/api-keys/{newest}:rotate", json={"overlap_s": 0}).raise_for_status()
    answer = client.get("/v1/tuning-jobs", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "expired_key")


def test_a_key_that_would_never_open_is_not_made(client: TestClient) -> None:
    past = (utc_now() - timedelta(seconds=1)).isoformat()
    before = client.get("/v1/api-keys").json()
    body = {"name": "k", "scopes": ["read"], "expires_at": past}
    answer = client.post("/v1/api-keys", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/expires_at"
    assert client.get("/v1/api-keys").json() == before


def test_a_revoked_key_is_refused(client: TestClient) -> None:
    headers = _key(client, "read")
    newest = client.get("/v1/api-keys").json()[-1]
    assert client.delete(f"/v1/api-keys/{newest['id']}").status_code == 204
    answer = client.get("/v1/tuning-jobs", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "revoked_key")


def test_a_key_that_was_just_used_is_refused_as_soon_as_it_is_revoked(client: TestClient) -> None:
    headers = _key(client, "read")
    newest = client.get("/v1/api-keys").json()[-1]
    for _ in range(3):
        assert client.get("/v1/tuning-jobs", headers=headers).status_code == 200
    assert client.delete(f"/v1/api-keys/{newest['id']}").status_code == 204
    assert client.get("/v1/tuning-jobs", headers=headers).status_code == 401


def test_a_key_that_another_process_revokes_is_soon_refused(
    client: TestClient, database: Database
) -> None:
    headers = _key(client, "read")
    newest = client.get("/v1/api-keys").json()[-1]
    assert client.get("/v1/tuning-jobs", headers=headers).status_code == 200
    with database.begin() as uow:
        uow.keys.get(newest["id"]).revoked_at = utc_now()
    wait_until(lambda: client.get("/v1/tuning-jobs", headers=headers).status_code == 401)


def test_a_secret_is_shown_once_and_never_listed(client: TestClient) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    headers = {"Idempotency-Key": "make-ci-key"}
    first = client.post("/v1/api-keys", json=body, headers=headers).json()
    again = client.post("/v1/api-keys", json=body, headers=headers).json()
    assert first["id"] == again["id"]
    assert "secret" in first
    assert "secret" not in again
    assert first["secret"] not in client.get("/v1/api-keys").text


def test_a_rotated_key_opens_for_its_overlap_and_the_new_one_from_then_on(
    client: TestClient,
) -> None:
    old = client.post("/v1/api-keys", json={"name": "ci", "scopes": ["tune"]}).json()
    rotate = f"/v1/api-keys/{old['id']}:rotate"
    answer = client.post(rotate, json={"overlap_s": 3600}, headers={"Idempotency-Key": "r"})
    new = answer.json()
    assert (answer.status_code, new["replaces"], new["scopes"]) == (201, old["id"], ["tune"])
    again = client.post(rotate, json={"overlap_s": 3600}, headers={"Idempotency-Key": "r"}).json()
    assert (again["id"], "secret" in again) == (new["id"], False)
    for key in (old, new):
        headers = {"Authorization": f"Bearer {key['secret']}"}
        assert client.get("/v1/tuning-jobs", headers=headers).status_code == 200
    assert client.post(rotate, json={"overlap_s": 0}).status_code == 201
    headers = {"Authorization": f"Bearer {old['secret']}"}
    assert client.get("/v1/tuning-jobs", headers=headers).json()["code"] == "expired_key"
    assert client.post(rotate, json={}).status_code == 409
    assert client.get("/v1/audit").json()[0]["action"] == "key.rotate"


def test_the_last_use_of_a_key_is_kept(client: TestClient) -> None:
    client.get("/v1/tuning-jobs", headers=_key(client, "read"))
    assert client.get("/v1/api-keys").json()[-1]["last_used_at"] is not None


def test_without_a_configured_key_a_first_one_is_made_once(database: Database) -> None:
    announced: list[str] = []
    ensure_first_key(database, None, announced.append)
    ensure_first_key(database, None, announced.append)
    assert len(announced) == 1
    with database.read() as uow:
        key = uow.keys.find_by_secret(announced[0])
        assert key is not None
        assert key.scopes == ["admin"]


def test_a_service_without_the_command_line_makes_no_key_that_its_log_would_have(
    settings: ServiceSettings, database: Database
) -> None:
    alone = settings.model_copy(update={"admin_key": None})
    with capture_logs() as told, TestClient(create_app(alone)):
        pass
    with database.read() as uow:
        assert uow.keys.count() == 0
    assert any("gearshift keys create" in line["event"] for line in told)


def test_services_that_begin_together_make_one_first_key(current_url: str) -> None:
    both, announced = threading.Barrier(2), list[str]()

    def announce(secret: str) -> None:
        announced.append(secret)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=1)  # for the other to come as far

    def begin() -> None:
        database = Database(current_url)
        try:
            ensure_first_key(database, None, announce)
        finally:
            database.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(begin) for _ in range(2)]:
            done.result()
    assert len(announced) == 1


def test_no_key_is_replaced_by_one_that_has_ended_already(client: TestClient) -> None:
    """Of the last admin key it would lock everybody out."""
    key_id = client.get("/v1/api-keys").json()[0]["id"]
    past = (utc_now() - timedelta(seconds=1)).isoformat()
    body = {"overlap_s": 0, "expires_at": past}
    assert client.post(f"/v1/api-keys/{key_id}:rotate", json=body).status_code == 409
    assert client.get("/v1/api-keys").status_code == 200
