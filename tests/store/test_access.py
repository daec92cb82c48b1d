"""Keys, idempotency and the audit chain."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from api.services import keys
from api.services.audit import service_caller
from store import ConflictError, Database, PageRequest, UnitOfWork
from store.audit import GENESIS, hash_document
from store.models import AuditEntry, IdempotencyKey
from tests.store.guards import drop_guards


def _append(database: Database, action: str) -> int:
    with database.begin() as uow:
        _note(uow, action)
    with database.read() as uow:
        return uow.audit.list_page(PageRequest(limit=1)).items[0].id


def _note(uow: UnitOfWork, action: str) -> None:
    uow.audit.append(
        actor="key_1",
        action=action,
        resource="engines/eng_1/policy",
        before=None,
        after={"version": 1},
        reason="because",
        request_id="r1",
    )


def test_a_key_is_found_by_its_secret_and_keeps_only_a_prefix(database: Database) -> None:
    with database.begin() as uow:
        key = uow.keys.add(name="ci", secret="gs_0123456789abcdef", scopes=["read"])
    with database.read() as uow:
        found = uow.keys.find_by_secret("gs_0123456789abcdef")
        assert found is not None
        assert found.id == key.id
        assert found.prefix == "gs_0123456"
        assert "abcdef" not in found.hash
        assert uow.keys.find_by_secret("gs_other") is None
        assert uow.keys.count() == 1


def test_of_two_admins_who_revoke_each_other_at_once_one_stays(database: Database) -> None:
    with database.begin() as uow:
        ids = [uow.keys.add(name=n, secret=f"gs_{n}", scopes=["admin"]).id for n in ("a", "b")]
    other = Database(database.url)

    def revoke(key_id: str, owner: Database) -> bool:
        try:
            with owner.begin() as uow:
                keys.revoke(uow, key_id, caller=service_caller("test"))
        except ConflictError:
            return False
        return True

    try:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(revoke, ids, (database, other)))
    finally:
        other.close()
    assert sorted(done) == [False, True]


def test_an_idempotency_key_is_claimed_once_per_actor(database: Database) -> None:
    def row(actor: str) -> IdempotencyKey:
        return IdempotencyKey(
            actor=actor, key="k", request_hash="h", status=202, headers={}, body={"id": 1}
        )

    with database.begin() as uow:
        assert uow.idempotency.claim(row("a"))
        assert not uow.idempotency.claim(row("a"))
        assert uow.idempotency.claim(row("b"))
    with database.read() as uow:
        found = uow.idempotency.find(actor="a", key="k")
        assert found is not None
        assert found.body == {"id": 1}


def test_audit_entries_chain_from_the_first(database: Database) -> None:
    for action in ("create", "patch", "rollback"):
        _append(database, action)
    with database.read() as uow:
        entries = list(reversed(uow.audit.list_page(PageRequest()).items))
        assert uow.audit.verify().is_whole
    assert [entry.previous_hash for entry in entries] == [
        GENESIS,
        entries[0].hash,
        entries[1].hash,
    ]
    assert entries[0].after_hash == hash_document({"version": 1})


def test_the_database_refuses_to_change_or_remove_an_audit_entry(database: Database) -> None:
    entry_id = _append(database, "create")
    for statement in (
        sa.update(AuditEntry).where(AuditEntry.id == entry_id).values(reason="other"),
        sa.delete(AuditEntry).where(AuditEntry.id == entry_id),
    ):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.begin() as uow:
            uow.session.execute(statement)


def test_an_entry_slipped_into_the_chain_is_found(database: Database) -> None:
    _append(database, "create")
    with database.begin() as uow:
        forged = AuditEntry(
            actor="x",
            action="a",
            resource="r",
            reason="",
            previous_hash=GENESIS,
            hash="f" * 64,
        )
        uow.session.add(forged)
    with database.read() as uow:
        assert uow.audit.verify().broken_id == forged.id


def test_an_altered_entry_and_a_missing_one_are_named_with_why(database: Database) -> None:
    entries = [_append(database, action) for action in ("create", "patch", "rollback")]
    with database.read() as uow:
        assert uow.audit.verify(since=entries[1]).num_entries == 2
        whole = uow.audit.verify()
        assert (whole.is_whole, whole.num_entries) == (True, 3)
        assert uow.audit.has(whole.last_hash or "")
    with database.begin() as uow:
        drop_guards(uow.session)
        uow.session.execute(
            sa.update(AuditEntry).where(AuditEntry.id == entries[1]).values(reason="another")
        )
    with database.read() as uow:
        found = uow.audit.verify()
    assert (found.broken_id, "altered" in str(found.reason)) == (entries[1], True)
    with database.begin() as uow:
        uow.session.execute(sa.delete(AuditEntry).where(AuditEntry.id == entries[1]))
    with database.read() as uow:
        found = uow.audit.verify()
    assert (found.broken_id, "missing" in str(found.reason)) == (entries[2], True)


def test_many_writers_at_once_keep_one_chain(database: Database) -> None:
    other = Database(database.url)
    try:
        with ThreadPoolExecutor(8) as pool:
            owners = (database if number % 2 else other for number in range(40))
            list(pool.map(lambda owner: _append(owner, "create"), owners))
    finally:
        other.close()
    with database.read() as uow:
        found = uow.audit.verify()
    assert (found.is_whole, found.num_entries) == (True, 40)


def test_of_a_part_that_fails_the_chain_tells_nothing(database: Database) -> None:
    def fail(uow: UnitOfWork) -> None:
        with uow.part():
            _note(uow, "undone")
            raise ValueError("not done")

    with database.begin() as uow:
        _note(uow, "before")
        with pytest.raises(ValueError, match="not done"):
            fail(uow)
        with uow.part():
            _note(uow, "after")
    with database.read() as uow:
        actions = [entry.action for entry in uow.audit.list_page(PageRequest()).items]
        assert uow.audit.verify().is_whole
    assert actions == ["after", "before"]


@pytest.mark.parametrize("current_url", ["postgresql"], indirect=True)  # SQLite has one writer
def test_who_has_a_row_and_who_waits_for_it_may_both_tell_the_chain(database: Database) -> None:
    """As an engine that is called ended while another registers for its devices."""
    with database.begin() as uow:
        key_id = uow.keys.add(name="k", secret="gs_k", scopes=["read"]).id
    has_row, has_told = threading.Event(), threading.Event()

    def hold_then_tell() -> None:
        with database.begin() as uow:
            uow.keys.get(key_id, for_update=True)
            has_row.set()
            assert has_told.wait(10)
            _note(uow, "second")

    def tell_then_wait() -> None:
        assert has_row.wait(10)
        with database.begin() as uow:
            _note(uow, "first")
            has_told.set()
            uow.keys.get(key_id, for_update=True)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(hold_then_tell), pool.submit(tell_then_wait)]:
            done.result()
    with database.read() as uow:
        found = uow.audit.verify()
    assert (found.is_whole, found.num_entries) == (True, 2)


def test_the_hash_of_a_document_does_not_depend_on_key_order() -> None:
    assert hash_document({"a": 1, "b": 2}) == hash_document({"b": 2, "a": 1})
