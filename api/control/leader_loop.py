"""Work that one service at a time does, of those that share a database."""

from __future__ import annotations

import threading
from collections.abc import Callable

from api.control.troubles import Troubles
from api.web.context import AppContext

# The name under which a tick that failed as a whole is counted.
WHOLE = "tick"


class LeaderLoop:
    """A thread that calls ``tick`` every ``every_s`` seconds while it holds the lock ``name``.

    When the service that has it ends, another takes over. The loop outlives a tick that raises, as
    with a database that is away for a while. ``troubles``: those of what the tick turns.
    """

    def __init__(
        self, context: AppContext, name: str, tick: Callable[[], None], *, every_s: float
    ) -> None:
        self._tick, self._every_s = tick, every_s
        self._lead = context.database.lock(name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.troubles = Troubles(context.metrics, name)

    def start(self) -> None:
        """Tick until :meth:`stop`."""
        self._thread.start()

    def stop(self, *, and_then: Callable[[], None] = lambda: None) -> None:
        """End the thread; a tick under way finishes first. After ``and_then`` another service may
        lead."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        and_then()
        self._lead.release()

    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait within a tick; whether the loop is to end."""
        return self._stop.wait(seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                if self._lead.try_take():
                    self._tick()
            except Exception as error:
                self.troubles.note(WHOLE, error)
            else:
                self.troubles.clear(WHOLE)
