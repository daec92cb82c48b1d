"""What earlier versions kept is read by this one: a whole database of each past schema.

``databases/0001.sql`` was kept by revision 0001: a service that tuned a model for two paced
devices, applied the answer to an engine, and controlled it while the load changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from api.documents.control_state import memory_from_json
from api.documents.policy import PolicyDocument, settings_in
from api.documents.recommendation import recommended_settings
from engine.spec.modes import AUTO
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from migrations.runner import check, downgrade, upgrade
from policies.schedule import Schedule
from store import Database
from tests.migrations.stored import DATABASES, load_dump
from tuner.pictures.trials import picture_of_document
from tuner.search.trials import TrialRecord

FOUND = Settings(
    plan=ParallelPlan(tp=1),
    threshold_tokens=256,
    caps=Caps(max_num_seqs=64, max_num_batched_tokens=1024),
)
# Columns whose documents have settings somewhere inside.
DOCUMENTS = {
    "tuning_jobs": ("report",),
    "job_events": ("data",),
    "trials": ("record",),
    "recommendations": ("document", "schedule"),
    "engines": ("schedule", "control_memory", "effective_policy"),
    "decisions": ("settings",),
    "policy_versions": ("document",),
}


@pytest.fixture
def stored(database_url: str) -> Iterator[Database]:
    """The database of revision 0001, on either kind of database."""
    database = Database(database_url)
    upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        load_dump(connection, DATABASES / "0001.sql")
    yield database
    database.close()


def _documents(database: Database) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with database.engine.connect() as connection:
        for name, columns in DOCUMENTS.items():
            table = sa.table(name, *(sa.column(c, type_=sa.JSON()) for c in columns))
            rows = connection.execute(sa.select(table)).all()
            found[name] = sorted(json.dumps(list(row), sort_keys=True) for row in rows)
    return found


def test_everything_that_was_kept_is_read_after_the_upgrade(stored: Database) -> None:
    upgrade(stored.engine)
    assert check(stored.engine).is_current
    with stored.read() as uow:
        engine = uow.engines.get(*uow.engines.list_scheduled_ids())
        recommendation = uow.recommendations.get(engine.recommendation_id or "")
        versions = [uow.policies.get(engine.id, n) for n in (1, 2)]
        decision = uow.decisions.find_last(engine.id)
    assert recommended_settings(recommendation.document) == FOUND
    assert [band.settings for band in Schedule.from_json(engine.schedule or {}).bands] == [FOUND]
    assert memory_from_json(engine.control_memory).commanded == FOUND
    newest = versions[engine.desired_version - 1]
    assert newest.control == {
        "recommendation_id": recommendation.id,
        "schedule": engine.schedule,
    }
    assert settings_in(engine.effective_policy) == FOUND
    plans = [PolicyDocument.from_json(v.document).settings.plan for v in versions]
    assert plans == [ParallelPlan(sp=2, shift=True), ParallelPlan()]
    assert decision is not None
    assert Settings.from_json(decision.settings or {}) == FOUND


def test_trials_events_and_the_report_of_a_job_say_settings_in_the_one_form(
    stored: Database,
) -> None:
    upgrade(stored.engine)
    with stored.engine.connect() as connection:
        read = {
            name: [row[0] for row in connection.execute(sa.text(f"SELECT {column} FROM {name}"))]
            for name, column in (("trials", "record"), ("job_events", "data"))
        }
        report = connection.execute(sa.text("SELECT report FROM tuning_jobs")).scalar_one()
    records = [json.loads(r) if isinstance(r, str) else r for r in read["trials"]]
    report = json.loads(report) if isinstance(report, str) else report
    for record in records:  # the store keeps a trial's metrics apart
        assert TrialRecord.from_json({**record, "metrics": {}}).settings.plan.world_size <= 2
    assert [TrialRecord.from_json(trial) for trial in report["trials"]]
    for name in ("fastest", "balanced"):
        assert Settings.from_json(report["alternatives"][name]["settings"])
    assert report["schedule"]["schema"] == "schedule/v2"
    assert str(FOUND) in picture_of_document(report).title


def test_going_back_gives_what_was_kept(stored: Database) -> None:
    before = _documents(stored)
    upgrade(stored.engine)
    assert _documents(stored) != before
    downgrade(stored.engine, "0001")
    assert _documents(stored) == before


def test_a_mode_that_flipped_by_a_coin_is_the_threshold_from_now_on(stored: Database) -> None:
    with stored.engine.begin() as connection:
        table = sa.table(
            "policy_versions", sa.column("version"), sa.column("document", type_=sa.JSON())
        )
        document = connection.execute(
            sa.select(table.c.document).where(table.c.version == 2)
        ).scalar_one()
        connection.execute(
            sa.update(table)
            .where(table.c.version == 2)
            .values(document={**document, "mode": "random:3"})
        )
    upgrade(stored.engine)
    with stored.read() as uow:
        engine = uow.engines.get(*uow.engines.list_scheduled_ids())
        version = uow.policies.get(engine.id, 2)
    assert PolicyDocument.from_json(version.document).settings.pin == AUTO


def test_what_had_no_plan_gets_that_of_its_policy_or_its_schedule(stored: Database) -> None:
    """The engine has been moved to another plan by hand since the controller's decisions."""
    with stored.engine.begin() as connection:
        engines = sa.table("engines", sa.column("effective_policy", type_=sa.JSON()))
        policy = connection.execute(sa.select(engines)).scalar_one()
        moved = {**policy, "plan": {**policy["plan"], "tp": 2}}
        connection.execute(sa.update(engines).values(effective_policy=moved))
    upgrade(stored.engine)
    with stored.read() as uow:
        engine = uow.engines.get(*uow.engines.list_scheduled_ids())
        decision = uow.decisions.find_last(engine.id)
    assert settings_in(engine.effective_policy).plan == ParallelPlan(tp=2)
    assert memory_from_json(engine.control_memory).commanded == FOUND
    assert decision is not None
    assert Settings.from_json(decision.settings or {}) == FOUND


def test_rows_in_which_next_to_nothing_stands_are_left_as_they_are(stored: Database) -> None:
    with stored.engine.begin() as connection:
        engines = sa.table(
            "engines",
            *(sa.column(c, type_=sa.JSON()) for c in ("control_memory", "effective_policy")),
        )
        connection.execute(
            sa.update(engines).values(control_memory={}, effective_policy={"plan": None})
        )
    upgrade(stored.engine)
    with stored.read() as uow:
        engine = uow.engines.get(*uow.engines.list_scheduled_ids())
    assert engine.control_memory == {}
    assert memory_from_json(engine.control_memory).commanded is None
    downgrade(stored.engine, "0001")
