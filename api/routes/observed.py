"""``/v1/engines``: those that are not ours, observed by their address."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from api.schemas.access import Scope
from api.schemas.observed import AdviceView, BindRequest, ObservationView, ObserveRequest
from api.schemas.serving import ChangeSet, EngineView
from api.services import advice, engines, observed, policies
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from store import UnitOfWork

router = APIRouter(prefix="/v1/engines", tags=["engines"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Applier = Annotated[Caller, require(Scope.APPLY)]


@router.post(
    ":observe",
    status_code=201,
    operation_id="observe_engine",
    summary="Observe a vLLM or SGLang server",
    response_model=EngineView,
)
def observe(
    request: Request,
    body: ObserveRequest,
    context: Context,
    caller: Applier,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Look at a server from now on by its `/metrics`; again under its name: it has moved, or runs
    other settings."""

    def run(uow: UnitOfWork) -> Answer:
        row = observed.observe(uow, body, context.settings, caller=caller)
        engine = engines.view(row, context.settings)
        headers = {"Location": f"/v1/engines/{engine.id}"}
        return Answer(status=201, body=engine.to_json(), headers=headers)

    document = body.model_dump(mode="json")
    return answer_once(context, caller, request, key=key, body=document, create=run)


@router.get(
    "/{engine_id}/observation",
    operation_id="get_engine_observation",
    summary="Read what is seen of an observed engine",
)
def observation(engine_id: str, context: Context, _: Reader) -> ObservationView:
    """Whether it is seen and why not; its load, latencies and attainment of the last seconds."""
    with context.database.read() as uow:
        return observed.view(uow, engine_id, context.settings)


@router.get(
    "/{engine_id}/advice",
    operation_id="get_engine_advice",
    summary="Read what an observed engine should run",
    responses={409: {}},
)
def advise(engine_id: str, context: Context, _: Reader) -> AdviceView:
    """The cheapest entry of its capacity table that carries what comes and what is forecast, as a
    command, a Deployment and a Compose file; 409 where it is held to no table, or to one of
    entries that its system cannot run."""
    with context.database.read() as uow:
        return advice.tell(uow, engine_id, context.settings)


@router.post(
    "/{engine_id}:bind",
    operation_id="bind_engine",
    summary="Hold an engine to a capacity table",
)
def bind(
    engine_id: str, body: BindRequest, response: Response, context: Context, caller: Applier
) -> ChangeSet:
    """The slow loop goes by this table and its SLA from now on; settings stay as they are."""
    with context.database.begin() as uow:
        answer = observed.bind(uow, engine_id, body, caller=caller)
    response.headers["ETag"] = policies.etag_of(answer.policy)
    return answer
