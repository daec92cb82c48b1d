"""Which key may do what: every operation with a key of each scope, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.schemas.access import Scope

OPERATIONS = Path(__file__).with_name("operations.txt")
OPEN = {"is_alive", "is_ready", "get_metrics"}
# Whatever is not named is read.
NEEDED = {
    Scope.TUNE: {
        "cancel_tuning_job",
        "create_cost_model",
        "create_tuning_job",
        "create_workload",
        "delete_tuning_job",
        "delete_workload",
    },
    Scope.APPLY: {
        "acknowledge_policy_version",
        "apply_recommendation",
        "bind_engine",
        "cancel_rollout",
        "create_rollout",
        "deregister_engine",
        "observe_engine",
        "patch_engine_policy",
        "register_engine",
        "roll_back_engine_policy",
        "send_heartbeat",
    },
    Scope.ADMIN: {
        "create_api_key",
        "list_api_keys",
        "list_audit",
        "revoke_api_key",
        "rotate_api_key",
        "verify_audit",
    },
}


def _operations() -> Iterator[tuple[str, str, str]]:
    """Method, path of something that is not there, and name."""
    for line in OPERATIONS.read_text().splitlines():
        method, path, name = line.split()
        for part in ("{version}", "{decision_id}"):
            path = path.replace(part, "1")
        yield method, path.replace("{", "").replace("}", ""), name


@pytest.mark.parametrize("scope", [None, *Scope])
def test_an_operation_opens_for_the_scopes_that_include_its_own(
    client: TestClient, scope: Scope | None
) -> None:
    if scope is None:
        del client.headers["Authorization"]
    else:
        made = client.post("/v1/api-keys", json={"name": scope.value, "scopes": [scope.value]})
        client.headers["Authorization"] = f"Bearer {made.json()['secret']}"
    needed = {name: own for own, names in NEEDED.items() for name in names}
    found, expected = {}, {}
    for method, path, name in _operations():
        own = needed.get(name, Scope.READ)
        is_open = name in OPEN or (scope is not None and own in scope.granted)
        expected[name] = "open" if is_open else "no key" if scope is None else own.value
        body = None if method in ("GET", "DELETE") else {}
        answer = client.request(method, path, json=body)
        missing = answer.json().get("required_scope") if answer.status_code == 403 else None
        found[name] = missing or ("no key" if answer.status_code == 401 else "open")
    assert found == expected
