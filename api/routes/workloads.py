"""``/v1/workloads``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api.schemas.access import Scope
from api.schemas.workloads import WorkloadSummary, WorkloadView
from api.services import workloads
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.errors import ApiError
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from api.web.paging import Paging, link_next
from store import UnitOfWork
from tuner.workload.traces import AUTO, TRACE_WORDS, trace_words

PATH = "/v1/workloads"
router = APIRouter(prefix=PATH, tags=["workloads"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Tuner = Annotated[Caller, require(Scope.TUNE)]
MULTIPART = "multipart/"
CSV_EXAMPLE = "arrival_s,input_tokens,output_tokens\n0.0,512,64\n0.4,128,32\n"
JSON_EXAMPLE = '{"timestamp": 0, "input_length": 512, "output_length": 64}\n'


def _text(example: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": example}


BODY = {
    "requestBody": {
        "required": True,
        "description": "The trace file itself, as curl --data-binary @FILE sends it",
        "content": {"text/csv": _text(CSV_EXAMPLE), "application/x-ndjson": _text(JSON_EXAMPLE)},
    }
}


@router.post(
    "",
    status_code=201,
    operation_id="create_workload",
    summary="Upload a trace",
    response_model=WorkloadView,
    openapi_extra=BODY,
)
async def create(
    request: Request,
    context: Context,
    caller: Tuner,
    name: Annotated[
        str, Query(min_length=1, max_length=120, description="What to call it, as in code.csv")
    ] = "trace",
    form: Annotated[
        str,
        Query(
            description="Format, where the first rows do not tell",
            json_schema_extra={"enum": list(TRACE_WORDS)},
        ),
    ] = AUTO,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Upload a trace of requests (CSV or JSON lines); jobs name it by its id.

    The body is the file. A row that cannot be read is 422, with its `line`.
    """
    if form not in (words := trace_words()):
        raise ApiError(422, "invalid_request", f"form {form!r}: known are {', '.join(words)}")
    if request.headers.get("content-type", "").startswith(MULTIPART):
        detail = "send the file itself as the body, as curl --data-binary @FILE does; no form"
        raise ApiError(415, "unsupported_media_type", detail)
    async with workloads.receive(request.stream()) as path:
        upload = await workloads.read(path, context.aside, name=name, form=form)

    def run(uow: UnitOfWork) -> Answer:
        row = workloads.keep(uow, upload, caller=caller)
        headers = {"Location": f"{PATH}/{row.id}"}
        return Answer(status=201, body=workloads.whole_view(row).to_json(), headers=headers)

    return await run_in_threadpool(
        lambda: answer_once(context, caller, request, key=key, body=upload.request, create=run)
    )


@router.get("", operation_id="list_workloads", summary="List workloads")
def list_page(
    page: Paging, request: Request, response: Response, context: Context, _: Reader
) -> list[WorkloadSummary]:
    """Uploaded traces, newest first."""
    with context.database.read() as uow:
        found = uow.workloads.list_page(page)
    link_next(request, response, found)
    return [workloads.view(row, WorkloadSummary) for row in found.items]


@router.get("/{workload_id}", operation_id="get_workload", summary="Read a workload")
def get(workload_id: str, context: Context, _: Reader) -> WorkloadView:
    """An uploaded trace and the shape of its traffic."""
    with context.database.read() as uow:
        return workloads.whole_view(uow.workloads.get(workload_id))


@router.delete(
    "/{workload_id}", status_code=204, operation_id="delete_workload", summary="Remove a workload"
)
def delete(workload_id: str, context: Context, caller: Tuner) -> None:
    """Remove an uploaded trace that no job names."""
    with context.database.begin() as uow:
        workloads.delete(uow, workload_id, caller=caller)
