"""Tuning jobs that drift asks for: one for each recommendation of an engine, within a budget."""

from __future__ import annotations

from datetime import datetime, timedelta

from api.documents.tuning_spec import foreseen_scale
from api.services.audit import record
from api.services.recent_load import as_upload, recent_workload
from api.services.workloads import keep
from api.web.auth import Caller
from store import ConflictError, UnitOfWork
from store.models import EngineRow, JobState, TuningJob
from store.models.base import Json
from tuner.search.spec import LEAST_STEP_SCALE, LOCAL, MOST_STEP_SCALE

# A job that nobody asked for does not search longer than this.
MOST_TRIALS = 20
DAY = timedelta(days=1)


def retune_key(engine: EngineRow) -> str:
    """What there is one job of: the engine under the recommendation in force."""
    return f"{engine.id}/{engine.recommendation_id}"


def request(
    uow: UnitOfWork,
    engine: EngineRow,
    *,
    ratio: float,
    per_day: float | None,
    now: datetime,
    caller: Caller,
) -> TuningJob | None:
    """Queue a job that tunes anew for the load of the last hours, with steps as long as they were
    seen to be (``ratio`` of what was foreseen).

    None where there is one for this recommendation already (also by another control plane, at the
    same moment), where ``per_day`` were queued for this engine in the last day, where too little is
    known of its load, or where the recommendation comes from no job that could be run again.
    """
    if engine.recommendation_id is None or uow.jobs.find_retune(retune_key(engine)) is not None:
        return None
    num_today = uow.jobs.count_retunes(f"{engine.id}/", since=now - DAY)
    if per_day is not None and num_today + 1 > per_day:
        return None
    recommendation = uow.recommendations.get(engine.recommendation_id)
    origin = uow.jobs.find(recommendation.job_id) if recommendation.job_id else None
    workload = recent_workload(uow, engine, now_s=now.timestamp())
    if origin is None or not origin.spec or workload is None:
        return None
    try:
        with uow.part():
            kept = keep(uow, as_upload(workload, f"load of {engine.name}"), caller=caller)
            scale = _step_scale(origin.spec, recommendation.document, ratio)
            spec = _spec(origin.spec, engine, workload_id=kept.id, ratio=ratio, scale=scale)
            job = uow.jobs.add(
                spec=spec,
                num_trials=spec["trials"],
                created_by=caller.actor,
                retune_key=retune_key(engine),
            )
            job.workload_id = kept.id
            job.reason = f"steps of {engine.name} take {ratio:.2f} times what was foreseen"
            uow.jobs.append_event(job.id, "state", {"state": job.state, "reason": job.reason})
            record(
                uow, caller, "job.create", f"tuning-jobs/{job.id}", reason=job.reason, after=spec
            )
    except ConflictError:
        return None
    return job


def find_offer(uow: UnitOfWork, engine: EngineRow) -> str | None:
    """The recommendation that this engine's job led to, to be applied; None: none (yet)."""
    if engine.recommendation_id is None:
        return None
    job = uow.jobs.find_retune(retune_key(engine))
    if job is None or job.state is not JobState.SUCCEEDED:
        return None
    found = uow.recommendations.find_for_job(job.id)
    return None if found is None else found.id


def _step_scale(origin: Json, recommended: Json, ratio: float) -> float:
    """How many times as long steps take as the cost model says: ``ratio`` of what was foreseen, and
    what was foreseen may have been longer than it says already."""
    scale = ratio * foreseen_scale(origin, recommended)
    return min(max(round(scale, 4), LEAST_STEP_SCALE), MOST_STEP_SCALE)


def _spec(origin: Json, engine: EngineRow, *, workload_id: str, ratio: float, scale: float) -> Json:
    """The job that led to the recommendation, for the load and the steps of now.

    On described hardware steps are simulated as long as they were seen. A job on this machine
    measures its steps anew; where no device is free for that, its backend takes what ``retune``
    says.
    """
    own = ("workload", "sla", "trials", "step_scale")
    given = origin.get("options") or {}
    options = {name: value for name, value in given.items() if name not in own}
    if origin.get("hardware", LOCAL) != LOCAL:
        options["step_scale"] = scale
    return {
        **origin,
        "workload": workload_id,
        "sla": engine.sla or origin["sla"],
        "trials": min(int(origin.get("trials") or MOST_TRIALS), MOST_TRIALS),
        "on_busy": "simulate",
        "options": options,
        "retune": {
            "engine_id": engine.id,
            "recommendation_id": engine.recommendation_id,
            "step_ratio": ratio,
            "step_scale": scale,
        },
    }
