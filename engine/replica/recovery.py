"""What a replica does when its ranks fail."""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.executors.protocol import ExecutorInfo
from engine.replica.telemetry import Telemetry
from engine.spec.errors import EngineError, RankError

logger = logging.getLogger(__name__)

MAX_RESTARTS_WITHOUT_PROGRESS = 3


class Recovery:
    """Starts ranks in the place of failed ones, unless they fail again and again.

    ``start`` starts new ranks. Owned by the replica's thread.
    """

    def __init__(self, telemetry: Telemetry, start: Callable[[], ExecutorInfo]) -> None:
        self._telemetry = telemetry
        self._start = start
        self._num_in_vain = 0

    @property
    def patience(self) -> float:
        """How many times longer than usual a step may take. It doubles with each failure without
        progress, so that a step that is merely slow does not look hung for ever.
        """
        return 2.0**self._num_in_vain

    def note_progress(self) -> None:
        """A step has finished, or there is none to finish, so earlier failures no longer count."""
        self._num_in_vain = 0

    def start_again(
        self, error: EngineError | OSError, *, is_stopping: Callable[[], bool]
    ) -> ExecutorInfo | None:
        """Start new ranks after ``error``; None once ``is_stopping``.

        Ranks that cannot start count as failed.

        Raises:
            RankError: ranks failed too often without one finished step.
        """
        first = error
        while not is_stopping():
            self._num_in_vain += 1
            if self._num_in_vain > MAX_RESTARTS_WITHOUT_PROGRESS:
                then = "" if error is first else f"; then their start: {error}"
                why = f"ranks failed {MAX_RESTARTS_WITHOUT_PROGRESS} times: {first}{then}"
                logger.error("a replica gives up, since %s", why)
                raise RankError(why)
            self._telemetry.restarts += 1
            logger.warning("ranks start again, since they failed: %s", error)
            try:
                return self._start()
            except (EngineError, OSError) as again:
                error = again
        return None
