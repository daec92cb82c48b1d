"""What the endpoints share: settings, database, metrics. Made once per application."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fastapi import Request

from api.web.aside import Aside
from api.web.metrics import ServiceMetrics
from api.web.settings import ServiceSettings
from api.web.watch import Watch
from store import Database


@dataclass(frozen=True, kw_only=True)
class AppContext:
    """The parts of one running application."""

    settings: ServiceSettings
    database: Database
    metrics: ServiceMetrics

    @cached_property
    def aside(self) -> Aside:
        """Work that requests have done in processes of their own."""
        return Aside()

    @cached_property
    def watch(self) -> Watch:
        """Wakes requests that wait for a change."""
        return Watch(self.database, look_every_s=self.settings.poll_interval_s)


async def get_context(request: Request) -> AppContext:
    """The context of the application that serves ``request``.

    A coroutine, as all such small parts of routes: a plain function would take a thread.
    """
    context: AppContext = request.app.state.context
    return context
