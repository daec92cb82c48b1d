"""What a change of policy would have done in the engine's last hours: asked before it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool

from api.aside.process import AsideError, AsideLimits
from api.documents.control_state import lengths_of, load_slots, slot_of
from api.documents.policy import settings_in
from api.documents.tuning_spec import field_of, foreseen_scale
from api.schemas.serving import ChangeSet
from api.services import policies
from api.web.aside import Aside
from api.web.errors import ApiError
from engine.spec.settings import Settings
from policies.load_history import LoadSlot
from store import Database, UnitOfWork
from store.models import EngineRow, Heartbeat
from store.models.base import Json
from tuner.search.spec import LOCAL

# Less than clients wait for an answer.
LIMITS = AsideLimits(seconds=25.0, memory_mib=2048)
# How far back the load is looked at, and the heartbeats that lengths are drawn from.
BACK_S = 6 * 3600
HEARTBEATS_S = 3600
MOST_LENGTHS = 5000

Wanted = Callable[[UnitOfWork, EngineRow], Settings]


async def with_effect(
    answer: ChangeSet, database: Database, aside: Aside, engine_id: str, wanted: Wanted
) -> ChangeSet:
    """``answer`` with what ``wanted`` would have done instead of the settings in force, or with the
    reason why nobody can tell."""
    question = await run_in_threadpool(_question, database, engine_id, wanted)
    if isinstance(question, str):
        return answer.model_copy(update={"effect_missing": question})
    try:
        found = await aside.run("effect", question, LIMITS)
    except (AsideError, ApiError) as error:
        return answer.model_copy(update={"effect_missing": str(error)})
    return answer.model_copy(update={"effect": found})


def _question(database: Database, engine_id: str, wanted: Wanted) -> Json | str:
    """What the process that simulates is asked; text: why there is nothing to ask."""
    with database.read() as uow:
        engine = uow.engines.get(engine_id)
        current, candidate = settings_in(engine.effective_policy), wanted(uow, engine)
        if candidate == current:
            return "these are the settings in force"
        steps = _steps(uow, engine)
        if isinstance(steps, str):
            return steps
        now_s = time.time()
        since = datetime.fromtimestamp(now_s - HEARTBEATS_S, UTC)
        beats = uow.engines.list_heartbeats(engine_id, since=since)
        slots = _slots(uow, engine, beats, now_s)
        if not any(slot.requests for slot in slots):
            return "no request of this engine is on record"
        return {
            **steps,
            "model": engine.model,
            "inventory": policies.inventory_of(engine).to_json(),
            "current": current.to_json(),
            "candidate": candidate.to_json(),
            "sla": engine.sla,
            "slots": [asdict(slot) for slot in slots],
            "lengths": list(lengths_of(beats))[-MOST_LENGTHS:],
        }


def _steps(uow: UnitOfWork, engine: EngineRow) -> Json | str:
    """Where step times come from: the job whose recommendation is in force."""
    if engine.recommendation_id is None:
        return "its step times are not known: no recommendation is in force"
    recommendation = uow.recommendations.get(engine.recommendation_id)
    spec = job_spec(uow, engine)
    if spec is None:
        return "its step times are not known: the job that tuned it is gone"
    names = ("model_dir", "dtype", "backend", "max_model_len")
    known = {name: field_of(spec, name) for name in names}
    known["model_name"] = known.pop("model_dir")
    known["step_scale"] = foreseen_scale(spec, recommendation.document)
    if (hardware := field_of(spec, "hardware")) != LOCAL:
        return {**known, "hardware": hardware}
    if recommendation.cost_model_id is None:
        return "its step times are not known: it was tuned without a cost model"
    cost_model = uow.cost_models.get(recommendation.cost_model_id)
    return {**known, "cost_model": cost_model.document}


def job_spec(uow: UnitOfWork, engine: EngineRow) -> Json | None:
    """What the job was asked whose recommendation is in force; None where there is none."""
    if engine.recommendation_id is None:
        return None
    job_id = uow.recommendations.get(engine.recommendation_id).job_id
    return None if job_id is None else uow.jobs.get(job_id).spec


def _slots(
    uow: UnitOfWork, engine: EngineRow, beats: Iterable[Heartbeat], now_s: float
) -> list[LoadSlot]:
    """Minutes that are kept, and those that only heartbeats tell of."""
    fresh = load_slots(list(beats))
    kept = {
        row.start_s: slot_of(row)
        for row in uow.loads.list_between(engine.id, int(now_s) - BACK_S, now_s)
    }
    return [slot for _, slot in sorted({**fresh, **kept}.items())]
