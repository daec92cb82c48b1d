"""Settings have one JSON form everywhere, that of the policy document

Before, a plan was a text here and an object there, a threshold was ``shift_threshold`` or
``threshold_tokens``, and what a load band held had no plan. Modes flipped by a coin
(``random:SEED``, an aid of tests) are no mode any more; where one was kept, the threshold decides.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Json = Any
AXES = ("dp", "pp", "sp", "tp")
OLD_REPORT, NEW_REPORT = "tuning-report/v1", "tuning-report/v2"
NEW_FORM = {"plan", "shift", "caps", "scheduler", "mode"}
# Tables, their keys and the columns whose documents hold settings somewhere inside.
DOCUMENTS = (
    ("tuning_jobs", ("id",), ("report",)),
    ("job_events", ("job_id", "seq"), ("data",)),
    ("trials", ("id",), ("record",)),
    ("recommendations", ("id",), ("document", "schedule")),
    ("engines", ("id",), ("schedule",)),
)


def upgrade() -> None:
    for table, keys, columns in DOCUMENTS:
        _rewrite(table, keys, columns, lambda row, column: upgraded(row[column]))
    plans = _Plans()
    _rewrite("engines", ("id",), ("control_memory",), plans.memory_up)
    _rewrite(
        "decisions",
        ("id",),
        ("settings",),
        plans.decision_up,
        beside=("engine_id", "policy_version"),
    )
    _rewrite("policy_versions", ("engine_id", "version"), ("document",), _without_coin)
    _rewrite("engines", ("id",), ("effective_policy",), _without_coin)


def downgrade() -> None:
    for table, keys, columns in DOCUMENTS:
        _rewrite(table, keys, columns, lambda row, column: downgraded(row[column]))
    _rewrite("engines", ("id",), ("control_memory",), _memory_down)
    _rewrite("decisions", ("id",), ("settings",), lambda row, column: _hot(row[column]))


def upgraded(value: Json) -> Json:
    """A document of revision 0001 with all settings inside in the one form."""
    if isinstance(value, list):
        return [upgraded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("schema") == "schedule/v1":
        return _schedule_up(value)
    if value.get("schema") == OLD_REPORT:
        value = {**value, "schema": NEW_REPORT}
    threshold = next((k for k in ("threshold_tokens", "shift_threshold") if k in value), None)
    if threshold is None or not {"plan", "caps"} <= value.keys():
        return {key: upgraded(item) for key, item in value.items()}
    settings = _settings(value["plan"], value[threshold], value["caps"], value.get("mode"))
    rest = {k: v for k, v in value.items() if k not in ("plan", threshold, "caps", "mode")}
    return {"settings": settings, **upgraded(rest)} if rest else settings


def downgraded(value: Json) -> Json:
    """A document of revision 0002 as revision 0001 had it."""
    if isinstance(value, list):
        return [downgraded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("schema") == "schedule/v2":
        return _schedule_down(value)
    if value.get("schema") == NEW_REPORT:
        value = {**value, "schema": OLD_REPORT}
    if value.keys() == NEW_FORM:
        return _flat(value, "threshold_tokens")
    settings = value.get("settings")
    # Settings were a part of their own here; the other keys say which part goes where.
    if not isinstance(settings, dict) or settings.keys() != NEW_FORM or "bound" in value:
        return {key: downgraded(item) for key, item in value.items()}
    rest = downgraded({key: item for key, item in value.items() if key != "settings"})
    flat = _flat(settings, "shift_threshold" if "explanation" in value else "threshold_tokens")
    if "number" in value and "state" in value:
        del flat["mode"]  # trials had none
    return flat | rest


def _settings(plan: Json, threshold: int, caps: Json, mode: str | None) -> Json:
    degrees, has_shift = _degrees(plan)
    return {
        "plan": degrees,
        "shift": {"enabled": has_shift, "threshold_tokens": threshold},
        "caps": caps,
        "scheduler": {"order": "fcfs"},
        "mode": "auto" if mode == "shift" and not has_shift else _pin(mode),
    }


def _degrees(plan: Json) -> tuple[dict[str, int], bool]:
    """Degrees and Shift of a plan that is a text (``sp=2,tp=2,shift``) or an object."""
    if isinstance(plan, dict):
        return {axis: plan.get(axis, 1) for axis in AXES}, bool(plan.get("shift", False))
    words = dict(part.partition("=")[::2] for part in plan.split(","))
    return {axis: int(words.get(axis, 1)) for axis in AXES}, "shift" in words


def _pin(mode: str | None) -> str:
    return "auto" if mode is None or mode.startswith("random:") else mode


def _flat(settings: Json, threshold_name: str) -> dict[str, Json]:
    degrees = [f"{axis}={n}" for axis, n in settings["plan"].items() if n > 1] or ["tp=1"]
    shift = ["shift"] if settings["shift"]["enabled"] else []
    return {
        "plan": ",".join(degrees + shift),
        threshold_name: settings["shift"]["threshold_tokens"],
        "caps": settings["caps"],
        "mode": settings["mode"],
    }


def _hot(settings: Json) -> Json:
    if settings is None:
        return None
    return {
        "threshold_tokens": settings["shift"]["threshold_tokens"],
        "caps": settings["caps"],
        "mode": settings["mode"],
    }


def _schedule_up(schedule: Json) -> Json:
    plan = schedule["plan"]
    bands = [{**band, "settings": _of_plan(plan, band["settings"])} for band in schedule["bands"]]
    return {"schema": "schedule/v2", "bands": bands}


def _schedule_down(schedule: Json) -> Json:
    bands = schedule["bands"]
    first = bands[0]["settings"]
    return {
        "schema": "schedule/v1",
        "plan": {**first["plan"], "shift": first["shift"]["enabled"]},
        "bands": [{**band, "settings": _hot(band["settings"])} for band in bands],
    }


def _of_plan(plan: Json, hot: Json) -> Json:
    return _settings(plan, hot["threshold_tokens"], hot["caps"], hot["mode"])


Convert = Callable[[Any, str], Json]


class _Plans:
    """The plans that what had none was meant for: the controller acts under a schedule's plan
    only, and a decision that wrote a policy did so under that policy's plan."""

    def __init__(self) -> None:
        connection = op.get_bind()
        engines = _table("engines", ("id",), ("schedule", "effective_policy"))
        self._by_engine = {}
        for row in connection.execute(sa.select(engines)).mappings():
            bands = (row["schedule"] or {}).get("bands")
            has = bands[0]["settings"] if bands else row["effective_policy"] or {}
            self._by_engine[row["id"]] = _plan_in(has)
        versions = _table("policy_versions", ("engine_id", "version"), ("document",))
        self._by_version = {
            (row["engine_id"], row["version"]): _plan_in(row["document"])
            for row in connection.execute(sa.select(versions)).mappings()
        }

    def memory_up(self, row: Any, column: str) -> Json:
        memory = row[column]
        if not memory.get("commanded"):
            return memory
        return {**memory, "commanded": _of_plan(self._by_engine[row["id"]], memory["commanded"])}

    def decision_up(self, row: Any, column: str) -> Json:
        written = self._by_version.get((row["engine_id"], row["policy_version"]))
        return _of_plan(written or self._by_engine[row["engine_id"]], row[column])


def _plan_in(settings: Json) -> Json:
    """The plan of settings in the one form, of which any part may be missing."""
    shift = settings.get("shift") or {}
    return {**(settings.get("plan") or {}), "shift": shift.get("enabled", False)}


def _memory_down(row: Any, column: str) -> Json:
    memory = row[column]
    return {**memory, "commanded": _hot(memory["commanded"])} if memory else memory


def _without_coin(row: Any, column: str) -> Json:
    document = row[column]
    return {**document, "mode": _pin(document.get("mode"))}


def _rewrite(
    name: str,
    keys: tuple[str, ...],
    columns: tuple[str, ...],
    convert: Convert,
    *,
    beside: tuple[str, ...] = (),
) -> None:
    """Replace the documents of ``columns`` that are not NULL; ``convert`` sees the whole row."""
    connection = op.get_bind()
    table = _table(name, keys + beside, columns)
    for row in connection.execute(sa.select(table)).mappings().all():
        changed = {c: convert(row, c) for c in columns if row[c] is not None}
        if any(changed[c] != row[c] for c in changed):
            where = sa.and_(*(table.c[key] == row[key] for key in keys))
            connection.execute(sa.update(table).where(where).values(changed))


def _table(name: str, plain: tuple[str, ...], documents: tuple[str, ...]) -> sa.TableClause:
    json = sa.JSON(none_as_null=True)
    return sa.table(
        name, *(sa.column(c) for c in plain), *(sa.column(c, type_=json) for c in documents)
    )
