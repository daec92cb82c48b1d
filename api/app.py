"""The FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import APIRouter, Depends, FastAPI

from api.control.controller import Controller
from api.dashboard.mount import Dashboard
from api.dashboard.paths import ASSETS, SOCKET
from api.observed.restarter import Restarter
from api.observed.watcher import Watcher
from api.routes import (
    api_keys,
    capacity,
    catalog,
    control,
    cost_models,
    engines,
    health,
    observed,
    policies,
    recommendations,
    rollouts,
    tuning_jobs,
    workloads,
)
from api.routes.quick_heartbeats import QuickHeartbeats
from api.schemas.serving import HeartbeatOut
from api.services import heartbeats
from api.services.heartbeats import Beat
from api.web.auth import KeyCheck, keep_configured_key
from api.web.context import AppContext
from api.web.description import complete
from api.web.errors import (
    answer_crash,
    install_error_handlers,
    refuse_unknown_parameters,
)
from api.web.group_commit import GroupCommit
from api.web.metrics import ServiceMetrics
from api.web.middleware import RefuseNulls
from api.web.settings import ServiceSettings
from engine.server.description import DescribedApp
from engine.server.gate import Gate
from engine.server.pages import add_docs
from engine.server.request_log import RequestLog
from engine.server.traces import find_traces
from store import Database

CHECKPOINT_EVERY_S = 1.0
ROUTES = APIRouter(dependencies=[Depends(refuse_unknown_parameters)])
# In the order in which routes are tried: nearly all requests are from engines.
for module in (
    engines,
    policies,
    observed,
    workloads,
    tuning_jobs,
    recommendations,
    rollouts,
    cost_models,
    control,
    api_keys,
    capacity,
    catalog,
):
    ROUTES.include_router(module.router)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service over the database that ``settings`` name; its schema must be the newest.

    The controller runs while the application does; the worker of tuning jobs is a process of its
    own (``api.jobs``).
    """
    context = AppContext(
        settings=settings,
        database=Database(settings.effective_database_url),
        metrics=ServiceMetrics(fresh_s=settings.fresh_s),
    )
    keys = KeyCheck(context.database)
    dashboard = Dashboard(context, keys)
    traces = find_traces("gearshift-service", instance=settings.node)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _find_key(context)
        try:
            async with _at_work(context), dashboard.running():
                yield
        finally:
            context.database.close()
            if traces is not None:
                traces.close()

    app = DescribedApp(
        complete=complete,
        title="Gearshift",
        summary="Tunes the parallelism of LLM engines and keeps them inside their SLA.",
        version=version("gearshift"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    app.state.context = context
    together: GroupCommit[Beat, HeartbeatOut] = GroupCommit(
        context.database, lambda uow, beats: heartbeats.keep(uow, beats, settings)
    )
    app.state.heartbeats = together
    install_error_handlers(app)
    app.add_middleware(QuickHeartbeats, heartbeats=together)
    _add_middleware(app, settings, dashboard)
    if traces is not None:
        app.add_middleware(traces.wrap)
    # Included once, above, and taken as they are: to include them here would analyse each again for
    # every application, a tenth of a second of its first requests.
    app.router.routes.extend(ROUTES.routes)
    app.include_router(health.router)
    dashboard.add_to(app)
    return app


def _add_middleware(app: FastAPI, settings: ServiceSettings, dashboard: Dashboard) -> None:
    """What every request passes, innermost first: the one added last meets it first."""
    app.add_middleware(
        Gate,
        limits=settings.limits,
        open_paths=(*health.PATHS, *dashboard.open_paths),
        admit=dashboard.admit,
        respond=dashboard.respond,
        large_bodies={
            ("POST", workloads.PATH): settings.max_upload_bytes,
            **dashboard.large_bodies,
        },
    )
    app.add_middleware(RefuseNulls)
    app.add_middleware(
        RequestLog,
        logger="api.request",
        answer_crash=answer_crash,
        quiet_beginnings=(ASSETS, SOCKET),
    )


@asynccontextmanager
async def _at_work(context: AppContext) -> AsyncIterator[None]:
    """What the service does besides answering, until the block ends."""
    loops: list[Controller | Watcher | Restarter] = [
        Controller(context),
        Watcher(context),
        Restarter(context),
    ]
    for loop in loops:
        loop.start()
    tasks = [
        asyncio.create_task(context.watch.run()),
        asyncio.create_task(_keep_log_short(context.database)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for loop in reversed(loops):
            loop.stop()


async def _keep_log_short(database: Database) -> None:
    """Keep the database's log short beside the requests, which would otherwise wait for it."""
    while True:
        await asyncio.sleep(CHECKPOINT_EVERY_S)
        try:
            await asyncio.to_thread(database.checkpoint)
        except Exception as error:  # the disk is full, or away for a while
            structlog.get_logger("api.app").warning("no checkpoint", error=str(error))


def _find_key(context: AppContext) -> None:
    """Keep the configured admin key. Without one none is made here, as the log would have it:
    ``gearshift serve`` makes the first one and shows it."""
    settings = context.settings
    if settings.admin_key is not None:
        keep_configured_key(context.database, settings.admin_key.get_secret_value())
        return
    with context.database.read() as uow:
        has_keys = uow.keys.count() > 0
    if not has_keys:
        structlog.get_logger("api.web.auth").warning(
            "nobody has a key; make one: gearshift keys create NAME --scope admin"
        )
