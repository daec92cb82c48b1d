"""Engines, heartbeats, policy versions, decisions and device leases."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from store import ConflictError, Database, NotFoundError, PageRequest
from store.engines import Window
from store.models import AckState, DecisionRow, EngineRow, Heartbeat
from store.models.base import utc_now


def _engine(database: Database, name: str = "chat") -> str:
    row = EngineRow(
        name=name,
        model_name="tiny",
        host="node-1",
        model={"num_layers": 2},
        envelope={"max_num_seqs": 64},
        capabilities=[],
        effective_policy={},
    )
    with database.begin() as uow:
        return uow.engines.add(row).id


def _beat(engine_id: str) -> Window:
    return Window(
        engine_id=engine_id, window_s=1.0, arrived=3, stats={}, requests=[{"ttft": 1}], steps=[]
    )


def test_an_engine_is_found_by_its_name(database: Database) -> None:
    engine_id = _engine(database)
    with database.begin() as uow:
        found = uow.engines.find_by_name("chat")
        assert found is not None
        assert found.id == engine_id
        assert uow.engines.find_by_name("other") is None


def test_two_engines_of_one_name_cannot_be(database: Database) -> None:
    _engine(database)
    with pytest.raises(ConflictError, match="an engine named 'chat' already"):
        _engine(database)


def test_a_heartbeat_stamps_the_engine_and_is_pruned_by_age(database: Database) -> None:
    engine_id = _engine(database)
    start = utc_now()
    with database.begin() as uow:
        uow.engines.add_heartbeats([_beat(engine_id)])
    with database.read() as uow:
        stamp = uow.engines.get(engine_id).last_heartbeat_at
        assert stamp is not None
        assert stamp >= start
        assert len(uow.engines.list_heartbeats(engine_id, since=start)) == 1
    with database.begin() as uow:
        uow.engines.add_heartbeats([_beat(engine_id), _beat(engine_id)])
    soon = utc_now() + timedelta(seconds=1)
    with database.begin() as uow:
        dropped = [uow.engines.prune_heartbeats(before=soon, limit=2) for _ in range(3)]
    assert dropped == [2, 1, 0]


def test_heartbeats_are_taken_when_four_bytes_number_no_more_of_them(database: Database) -> None:
    engine_id = _engine(database)
    start = utc_now()
    with database.begin() as uow:
        uow.engines.add_heartbeats([_beat(engine_id)])
        connection = uow.session.connection()
        if connection.dialect.name == "postgresql":
            sequence = sa.func.pg_get_serial_sequence("engine_heartbeats", "id")
            connection.execute(sa.select(sa.func.setval(sequence, 2**31 - 1)))
        else:
            connection.execute(sa.update(Heartbeat).values(id=2**31 - 1))
    with database.begin() as uow:
        uow.engines.add_heartbeats([_beat(engine_id)])
    with database.read() as uow:
        newest = uow.engines.list_heartbeats(engine_id, since=start)[-1]
    assert newest.id == 2**31


def test_engines_that_were_heard_of_lately_come_with_what_was_seen_of_them(
    database: Database,
) -> None:
    engine_id, _silent = _engine(database), _engine(database, "silent")
    start = utc_now()
    with database.begin() as uow:
        uow.engines.get(engine_id).live_window = {"attainment": 0.5}
        uow.engines.add_heartbeats([_beat(engine_id)])
    with database.read() as uow:
        (found,) = uow.engines.list_alive(since=start)
        assert (found.name, found.live_window) == ("chat", {"attainment": 0.5})
        assert list(uow.engines.list_alive(since=utc_now())) == []


def test_a_heartbeat_of_no_engine_is_refused(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.begin() as uow:
        uow.engines.add_heartbeats([_beat("eng_none")])


def test_policy_versions_count_up_and_the_newest_is_desired(database: Database) -> None:
    engine_id = _engine(database)
    with database.begin() as uow:
        engine = uow.engines.get(engine_id, for_update=True)
        for mode in ("auto", "base"):
            uow.policies.add(
                engine,
                document={"mode": mode},
                control=None,
                origin="operator",
                reason="",
                created_by="k",
            )
    with database.read() as uow:
        page = uow.policies.list_page(engine_id, PageRequest(limit=10))
        assert [row.version for row in page.items] == [2, 1]
        assert uow.engines.get(engine_id).desired_version == 2
        assert uow.policies.get(engine_id, 1).document == {"mode": "auto"}
        with pytest.raises(NotFoundError, match="3"):
            uow.policies.get(engine_id, 3)


def test_the_version_applied_before_is_found_with_one_question(database: Database) -> None:
    """Not one that waits or was refused, nor one that only took its turn in a rollout."""
    engine_id = _engine(database)
    turn, whole = {"provenance": {"slice": 3}}, {"provenance": {"rollout": "roll_1"}}
    versions = [
        ({"mode": "auto"}, "operator", AckState.APPLIED),
        (whole, "rollout", AckState.APPLIED),
        *[(turn, "rollout", AckState.APPLIED)] * 20,
        ({"mode": "base"}, "operator", AckState.REFUSED),
        ({"mode": "base"}, "operator", AckState.PENDING),
    ]
    with database.begin() as uow:
        engine = uow.engines.get(engine_id, for_update=True)
        for document, origin, state in versions:
            row = uow.policies.add(
                engine,
                document=document,
                control=None,
                origin=origin,
                reason="",
                created_by="k",
            )
            row.ack_state = state
    asked: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *it: asked.append(it[2]))
    with database.read() as uow:
        found = uow.policies.find_applied(engine_id, before=len(versions) + 1)
        assert found is not None
        assert (found.version, found.document) == (2, whole)
        assert sum("policy_versions" in question for question in asked) == 1
        first = uow.policies.find_applied(engine_id, before=2)
        assert first is not None
        assert first.version == 1
        assert uow.policies.find_applied(engine_id, before=1) is None


def test_only_engines_with_a_schedule_are_the_controllers(database: Database) -> None:
    with_one, _ = _engine(database, "a"), _engine(database, "b")
    with database.begin() as uow:
        uow.engines.get(with_one).schedule = {"bands": []}
    with database.read() as uow:
        assert uow.engines.list_scheduled_ids() == [with_one]


def test_the_last_decision_of_an_engine_is_found(database: Database) -> None:
    engine_id = _engine(database)
    with database.begin() as uow:
        for action in ("hold", "move"):
            uow.decisions.add(
                DecisionRow(
                    engine_id=engine_id, action=action, reason="r", rejected=[], observed={}
                )
            )
    with database.read() as uow:
        last = uow.decisions.find_last(engine_id)
        assert last is not None
        assert last.action == "move"


def test_a_leased_device_cannot_be_leased_again_until_released(database: Database) -> None:
    with database.begin() as uow:
        assert uow.devices.try_lease(host="n", devices=[0, 1], holder="eng_1", expires_at=None)
        assert not uow.devices.try_lease(host="n", devices=[1, 2], holder="job_1", expires_at=None)
    with database.begin() as uow:
        assert [lease.device for lease in uow.devices.list_leases("n")] == [0, 1]
        uow.devices.release("eng_1")
    with database.begin() as uow:
        assert uow.devices.try_lease(host="n", devices=[1, 2], holder="job_1", expires_at=None)


def test_an_expired_lease_is_free_again(database: Database) -> None:
    past = utc_now() - timedelta(seconds=1)
    with database.begin() as uow:
        assert uow.devices.try_lease(host="n", devices=[0], holder="job_1", expires_at=past)
    with database.begin() as uow:
        assert uow.devices.list_leases("n") == []
        assert uow.devices.try_lease(host="n", devices=[0], holder="job_2", expires_at=None)
