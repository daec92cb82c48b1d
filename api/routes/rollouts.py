"""``/v1/rollouts``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from api.schemas.access import Scope
from api.schemas.rollouts import RolloutCreate, RolloutDetail, RolloutView
from api.services import rollouts
from api.web import sse
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from api.web.paging import Paging, link_next
from store import UnitOfWork
from store.models import RolloutState

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Applier = Annotated[Caller, require(Scope.APPLY)]
RETRY_AFTER_S = "5"


@router.post(
    "",
    status_code=202,
    operation_id="create_rollout",
    summary="Roll a policy out",
    response_model=RolloutView,
)
def create(
    body: RolloutCreate,
    request: Request,
    context: Context,
    caller: Applier,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Prove a candidate before it spreads: simulated on the engine's last hours, then by turns with
    what runs now, then alone; taken back where it is worse."""

    def run(uow: UnitOfWork) -> Answer:
        rollout = rollouts.view(rollouts.create(uow, body, context.settings, caller=caller))
        headers = {"Location": f"/v1/rollouts/{rollout.id}", "Retry-After": RETRY_AFTER_S}
        return Answer(status=202, body=rollout.to_json(), headers=headers)

    return answer_once(
        context, caller, request, key=key, body=body.model_dump(mode="json"), create=run
    )


@router.get("", operation_id="list_rollouts", summary="List rollouts")
def list_page(
    page: Paging,
    request: Request,
    response: Response,
    context: Context,
    _: Reader,
    engine_id: str | None = None,
    state: RolloutState | None = None,
) -> list[RolloutView]:
    """Rollouts, newest first."""
    with context.database.read() as uow:
        found = uow.rollouts.list_page(page, engine_id=engine_id, state=state)
        link_next(request, response, found)
        return [rollouts.view(row) for row in found.items]


@router.get("/{rollout_id}", operation_id="get_rollout", summary="Read a rollout")
def get(rollout_id: str, response: Response, context: Context, _: Reader) -> RolloutDetail:
    """A rollout as it stands, and every state it has had with its reason and numbers."""
    with context.database.read() as uow:
        found = rollouts.detail(uow, rollout_id)
    if not found.state.is_final:
        response.headers["Retry-After"] = RETRY_AFTER_S
    return found


@router.get(
    "/{rollout_id}/events",
    operation_id="follow_rollout",
    summary="Follow a rollout's events",
    response_class=StreamingResponse,
    responses={200: {"content": sse.described("state", "pair")}},
)
def events(
    rollout_id: str,
    context: Context,
    _: Reader,
    last_event_id: sse.LastEventId = 0,
) -> StreamingResponse:
    """States and counted pairs of slices, as server-sent events."""
    with context.database.read() as uow:
        uow.rollouts.get(rollout_id)
    return sse.answer(sse.rollout_events(context, rollout_id, after=last_event_id))


@router.post(
    "/{rollout_id}:cancel",
    status_code=202,
    operation_id="cancel_rollout",
    summary="Cancel a rollout",
)
def cancel(rollout_id: str, context: Context, caller: Applier) -> RolloutView:
    """End it now; the engine is asked for what it ran before, as a new policy version."""
    with context.database.begin() as uow:
        return rollouts.view(rollouts.cancel(uow, rollout_id, caller=caller))
