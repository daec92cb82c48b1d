"""``/v1/tuning-jobs``."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.schemas.access import Scope
from api.schemas.analysis import ImportanceView, ParetoView
from api.schemas.base import Json
from api.schemas.examples import tuning as shown
from api.schemas.tuning import TrialView, TuningJobCreate, TuningJobView
from api.services import analysis, jobs
from api.web import sse
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from api.web.paging import NumberedPaging, Paging, link_next
from store import UnitOfWork
from store.models import JobState

router = APIRouter(prefix="/v1/tuning-jobs", tags=["tuning jobs"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Tuner = Annotated[Caller, require(Scope.TUNE)]
RETRY_AFTER_S = "2"
REPORT = {
    "application/json": {"example": shown.REPORT},
    "text/markdown": {"schema": {"type": "string"}},
    "text/html": {"schema": {"type": "string"}},
}
FORMS = {"application/json": "json", "text/markdown": "markdown", "text/html": "html"}
EVENTS = sse.described("state", "trial")


@router.post(
    "",
    status_code=202,
    operation_id="create_tuning_job",
    summary="Queue a tuning job",
    response_model=TuningJobView,
)
def create(
    body: TuningJobCreate,
    request: Request,
    context: Context,
    caller: Tuner,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Queue a tuning job; follow it by its Location or its events."""

    def run(uow: UnitOfWork) -> Answer:
        job = jobs.view(uow, jobs.create(uow, body, context.settings, caller=caller))
        headers = {"Location": f"/v1/tuning-jobs/{job.id}", "Retry-After": RETRY_AFTER_S}
        return Answer(status=202, body=job.to_json(), headers=headers)

    return answer_once(
        context, caller, request, key=key, body=body.model_dump(mode="json"), create=run
    )


@router.get("", operation_id="list_tuning_jobs", summary="List tuning jobs")
def list_page(
    page: Paging,
    request: Request,
    response: Response,
    context: Context,
    _: Reader,
    state: JobState | None = None,
) -> list[TuningJobView]:
    """Jobs, newest first."""
    with context.database.read() as uow:
        found = uow.jobs.list_page(page, state=state)
        link_next(request, response, found)
        return jobs.views(uow, found.items)


@router.get("/{job_id}", operation_id="get_tuning_job", summary="Read a tuning job")
def get(job_id: str, response: Response, context: Context, _: Reader) -> TuningJobView:
    """A job as it stands."""
    with context.database.read() as uow:
        job = jobs.view(uow, uow.jobs.get(job_id))
    if not job.state.is_final:
        response.headers["Retry-After"] = RETRY_AFTER_S
    return job


@router.post(
    "/{job_id}:cancel",
    status_code=202,
    operation_id="cancel_tuning_job",
    summary="Cancel a tuning job",
)
def cancel(job_id: str, context: Context, caller: Tuner) -> TuningJobView:
    """Stop it, also while it is prepared; finished trials stay, one under way does not count."""
    with context.database.begin() as uow:
        return jobs.view(uow, jobs.cancel(uow, job_id, caller=caller))


@router.delete(
    "/{job_id}",
    status_code=204,
    operation_id="delete_tuning_job",
    summary="Remove a finished tuning job",
)
def delete(job_id: str, context: Context, caller: Tuner) -> None:
    """Remove a finished job with its trials and events."""
    with context.database.begin() as uow:
        jobs.delete(uow, job_id, caller=caller)


@router.get("/{job_id}/trials", operation_id="list_trials", summary="List a tuning job's trials")
def list_trials(
    job_id: str,
    page: NumberedPaging,
    request: Request,
    response: Response,
    context: Context,
    _: Reader,
) -> list[TrialView]:
    """Finished trials in order of number."""
    with context.database.read() as uow:
        found = uow.trials.list_page(uow.jobs.get(job_id).id, page)
        link_next(request, response, found)
        records = uow.trials.records(found.items)
    pairs = zip(found.items, records, strict=True)
    return [
        TrialView(
            id=trial.id,
            job_id=trial.job_id,
            number=trial.number,
            state=trial.state,
            record=record,
            created_at=trial.created_at,
        )
        for trial, record in pairs
    ]


@router.get(
    "/{job_id}/events",
    operation_id="follow_tuning_job",
    summary="Follow a tuning job's events",
    response_class=StreamingResponse,
    responses={200: {"content": EVENTS}},
)
def events(
    job_id: str,
    context: Context,
    _: Reader,
    last_event_id: sse.LastEventId = 0,
) -> StreamingResponse:
    """Progress as server-sent events."""
    with context.database.read() as uow:
        uow.jobs.get(job_id)
    return sse.answer(sse.job_events(context, job_id, after=last_event_id))


@router.get(
    "/{job_id}/pareto", operation_id="get_pareto_front", summary="Read a tuning job's Pareto front"
)
def pareto(job_id: str, context: Context, _: Reader) -> ParetoView:
    """The trials so far that no other beats in devices and in all that the SLA bounds."""
    with context.database.read() as uow:
        return analysis.pareto(uow, job_id)


@router.get(
    "/{job_id}/importance", operation_id="get_importance", summary="Read which knobs mattered"
)
def importance(job_id: str, context: Context, _: Reader) -> ImportanceView:
    """How much each knob had to do with latency, over the trials so far."""
    with context.database.read() as uow:
        return analysis.importance(uow, job_id)


@router.get(
    "/{job_id}/report",
    operation_id="get_tuning_report",
    summary="Read a tuning job's report",
    response_model=Json,
    responses={200: {"content": REPORT}, 409: {}},
)
async def report(
    job_id: str,
    context: Context,
    _: Reader,
    form: Annotated[
        Literal["json", "markdown", "html"] | None,
        Query(
            alias="format",
            description="json: the document of tune --out; markdown, html: the report of gearshift "
            "report. Without it what Accept asks for, else json",
        ),
    ] = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """The tuner's whole answer, as JSON or as a report to read; 409 while there is none."""
    document = await run_in_threadpool(_read_report, context, job_id)
    wanted = form or _accepted_form(accept)
    if wanted == "json":
        return JSONResponse(document)
    text = await jobs.told_report(document, wanted, context.aside)
    if wanted == "markdown":
        return Response(text, media_type="text/markdown; charset=utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": "sandbox allow-scripts"})


def _accepted_form(accept: str) -> str:
    """The first form that the header names; browsers name text/html first."""
    for part in accept.split(","):
        if (found := FORMS.get(part.partition(";")[0].strip().lower())) is not None:
            return found
    return "json"


def _read_report(context: AppContext, job_id: str) -> Json:
    with context.database.read() as uow:
        return jobs.report(uow, job_id)
