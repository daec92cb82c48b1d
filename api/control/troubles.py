"""What goes wrong at one turn after another: told when it begins or changes, counted each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from api.web.metrics import ServiceMetrics
from engine.spec.errors import EngineError
from policies.errors import PolicyInputError
from store import StoreError
from store.outage import is_outage
from tuner.spec.errors import TunerError

# What a user, a file or a database that is away can cause: no traceback would tell more of it.
FORESEEN = (EngineError, PolicyInputError, StoreError, TunerError)


class Troubles:
    """Troubles of one loop over many things (engines, servers): each stays its own.

    A row that cannot be read fails every few seconds until somebody mends it. Its traceback is in
    the log once; ``gearshift_control_failures_total`` says that it goes on.
    """

    def __init__(self, metrics: ServiceMetrics, loop: str) -> None:
        self._count = metrics.control_failures.labels(loop=loop)
        self._told: dict[str, str] = {}
        self._log = structlog.get_logger("api.control.troubles").bind(loop=loop)

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """The turn of ``key``, whose error ends here, unless the database is away: then that of
        every other would fail as well."""
        try:
            yield
        except Exception as error:
            if is_outage(error):
                raise
            self.note(key, error)
        else:
            self.clear(key)

    def note(self, key: str, error: Exception) -> None:
        """Count a failed turn; tell of it where the last one did not fail in the same way."""
        self._count.inc()
        said = f"{type(error).__name__}: {error}"
        if self._told.get(key) == said:
            return
        self._told[key] = said
        is_foreseen = isinstance(error, FORESEEN) or is_outage(error)
        tell = self._log.warning if is_foreseen else self._log.exception
        tell("turn failed", key=key, error=said.splitlines()[0])

    def clear(self, key: str) -> None:
        """A turn that did not fail; whoever was told of one that did is told of the end."""
        if self._told.pop(key, None) is not None:
            self._log.info("turn no longer fails", key=key)
