"""What the endpoints share: settings, database, metrics. Made once per application."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
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
    # Set when the service is asked to end, so that waiting requests answer at once.
    stopping: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def aside(self) -> Aside:
        """Work that requests have done in processes of their own."""
        return Aside()

    @cached_property
    def watch(self) -> Watch:
        """Wakes requests that wait for a change."""
        return Watch(
            self.database,
            stopping=self.stopping,
            look_every_s=self.settings.poll_interval_s,
        )


def get_context(request: Request) -> AppContext:
    """The context of the application that serves ``request``."""
    context: AppContext = request.app.state.context
    return context
