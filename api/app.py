"""The FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI

from api.control.controller import Controller
from api.routes import (
    api_keys,
    catalog,
    control,
    cost_models,
    engines,
    health,
    policies,
    recommendations,
    tuning_jobs,
    workloads,
)
from api.web.auth import KeyCheck, ensure_first_key
from api.web.context import AppContext
from api.web.description import DescribedApp
from api.web.errors import install_error_handlers, respond
from api.web.metrics import ServiceMetrics
from api.web.middleware import RequestContext
from api.web.settings import ServiceSettings
from engine.server.gate import Gate
from engine.server.pages import add_docs
from store import Database

ROUTERS = (
    workloads.router,
    tuning_jobs.router,
    recommendations.router,
    engines.router,
    policies.router,
    cost_models.router,
    control.router,
    api_keys.router,
    catalog.router,
    health.router,
)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service over the database that ``settings`` name; its schema must be the newest.

    The controller runs while the application does; the worker of tuning jobs is a process of its
    own (``api.jobs``).
    """
    context = AppContext(
        settings=settings,
        database=Database(settings.effective_database_url),
        metrics=ServiceMetrics(),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        secret = settings.admin_key.get_secret_value() if settings.admin_key else None
        ensure_first_key(context.database, secret, _announce_key)
        controller = Controller(context)
        controller.start()
        watching = asyncio.create_task(context.watch.run())
        try:
            yield
        finally:
            watching.cancel()
            controller.stop()
            context.database.close()

    app = DescribedApp(
        title="Gearshift",
        summary="Tunes the parallelism of LLM engines and keeps them inside their SLA.",
        version=version("gearshift"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    app.state.context = context
    install_error_handlers(app)
    app.add_middleware(
        Gate,
        limits=settings.limits,
        open_paths=health.PATHS,
        admit=KeyCheck(context.database).admit,
        respond=respond,
        large_bodies={("POST", workloads.PATH): settings.max_upload_bytes},
    )
    app.add_middleware(RequestContext)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _announce_key(secret: str) -> None:
    """Say the first key once; only its hash is kept."""
    structlog.get_logger("api.web.auth").warning(
        "made the first admin key; it is shown only now", key=secret
    )
