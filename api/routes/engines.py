"""``/v1/engines``: what engines call, and what people ask about them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from api.schemas.access import Scope
from api.schemas.base import Json, answer
from api.schemas.examples import engines as shown
from api.schemas.serving import (
    EngineRegister,
    EngineView,
    HeartbeatIn,
    HeartbeatOut,
    RegisteredView,
)
from api.services import engines
from api.services.heartbeats import Beat
from api.web.auth import Caller, EngineCredential, require
from api.web.context import AppContext, get_context
from api.web.group_commit import GroupCommit
from api.web.paging import Paging, link_next

router = APIRouter(prefix="/v1/engines", tags=["engines"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Applier = Annotated[Caller, require(Scope.APPLY)]


async def get_heartbeats(request: Request) -> GroupCommit[Beat, HeartbeatOut]:
    """Where the application that serves ``request`` brings heartbeats."""
    found: GroupCommit[Beat, HeartbeatOut] = request.app.state.heartbeats
    return found


Heartbeats = Annotated[GroupCommit[Beat, HeartbeatOut], Depends(get_heartbeats)]


@router.post(
    "",
    status_code=201,
    operation_id="register_engine",
    summary="Register an engine",
    response_model=RegisteredView,
)
def register(
    body: EngineRegister, context: Context, caller: Applier, credential: EngineCredential = None
) -> JSONResponse:
    """Register an engine, or register it again with its credential.

    A name belongs to its engine while that lives: another one is refused (409). Once it has ended
    or been silent for a control window, the name is free, and who takes it gets a new credential.
    """
    with context.database.begin() as uow:
        row, issued = engines.register(
            uow, body, context.settings, credential=credential, caller=caller
        )
        engine = engines.view(row, context.settings)
    headers = {"Location": f"/v1/engines/{engine.id}"}
    return JSONResponse({**engine.to_json(), "credential": issued}, 201, headers=headers)


@router.get("", operation_id="list_engines", summary="List engines")
def list_page(
    page: Paging, request: Request, response: Response, context: Context, _: Reader
) -> list[EngineView]:
    """Engines in order of registration."""
    with context.database.read() as uow:
        found = uow.engines.list_page(page)
    link_next(request, response, found)
    return [engines.view(row, context.settings) for row in found.items]


@router.get("/{engine_id}", operation_id="get_engine", summary="Read an engine")
def get(engine_id: str, context: Context, _: Reader) -> EngineView:
    """An engine."""
    with context.database.read() as uow:
        return engines.view(uow.engines.get(engine_id), context.settings)


@router.get(
    "/{engine_id}/capabilities",
    operation_id="get_engine_capabilities",
    summary="List an engine's knobs",
    responses=answer([shown.KNOB]),
)
def capabilities(engine_id: str, context: Context, _: Reader) -> list[Json]:
    """Each knob with its class, range and measured cost, as the engine reported it."""
    with context.database.read() as uow:
        return uow.engines.get(engine_id).capabilities


@router.post(
    "/{engine_id}/heartbeats",
    status_code=202,
    operation_id="send_heartbeat",
    summary="Report an engine's traffic",
)
async def heartbeat(
    engine_id: str,
    body: HeartbeatIn,
    beats: Heartbeats,
    _: Applier,
    credential: EngineCredential = None,
) -> HeartbeatOut:
    """Exact samples of one window of an engine's traffic, from the engine itself."""
    return await beats.add(Beat(engine_id=engine_id, body=body, credential=credential))


@router.post(
    "/{engine_id}:deregister",
    status_code=204,
    operation_id="deregister_engine",
    summary="Deregister an engine",
)
def deregister(
    engine_id: str, context: Context, caller: Applier, credential: EngineCredential = None
) -> None:
    """The engine ends: free its devices; its history stays. Of a live engine only it may say so."""
    with context.database.begin() as uow:
        engines.deregister(uow, engine_id, context.settings, credential=credential, caller=caller)
