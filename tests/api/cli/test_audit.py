"""``gearshift audit verify`` and ``/v1/audit:verify``."""

from __future__ import annotations

import json

import sqlalchemy as sa
from starlette.testclient import TestClient

from store import Database
from tests.api.cli.conftest import Run
from tests.api.worlds import etag_of, patched, register
from tests.store.guards import drop_guards


def test_a_whole_chain_and_the_first_broken_entry_are_told_by_both(
    client: TestClient, database: Database, run: Run
) -> None:
    for number in range(3):
        client.post("/v1/api-keys", json={"name": f"k{number}", "scopes": ["read"]})
    whole = client.get("/v1/audit:verify").json()
    assert (whole["is_whole"], whole["num_entries"]) == (True, 3)
    done = run("audit", "verify", "--database-url", database.url)
    assert (done.exit_code, "3 entries" in done.stdout) == (0, True)
    done = run("audit", "verify", "--database-url", database.url, "--head", "0" * 64)
    assert (done.exit_code, "cut" in done.stdout) == (1, True)
    head = {"head": whole["last_hash"], "since": 2}
    assert client.get("/v1/audit:verify", params=head).json()["has_head"] is True
    with database.begin() as uow:
        drop_guards(uow.session)
        uow.session.execute(sa.text("UPDATE audit SET reason = 'nothing' WHERE id = 2"))
    assert client.get("/v1/audit:verify").json()["broken_id"] == 2
    done = run("audit", "verify", "--database-url", database.url)
    assert (done.exit_code, "broken at entry 2: it was altered" in done.stdout) == (1, True)
    done = run("audit", "verify", "--database-url", database.url, "--json")
    assert json.loads(done.stdout)["broken_id"] == 2


def test_a_reason_steers_no_terminal_that_lists_it(
    client: TestClient, database: Database, run: Run
) -> None:
    """Up a line and clear it: what came before would be gone from the screen."""
    engine_id = register(client)
    wipe = "tuned\x1b[1A\x1b[2K\x9b2K"
    etag = etag_of(client, engine_id)
    assert patched(client, engine_id, {"mode": "base"}, etag, reason=wipe).status_code == 200
    done = run("audit", "list", "--database-url", database.url)
    assert done.exit_code == 0
    assert "tuned" in done.stdout
    assert not any(sign in done.stdout for sign in "\x1b\x9b")
