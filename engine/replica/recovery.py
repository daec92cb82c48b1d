"""What a replica does when its ranks fail."""

from __future__ import annotations

from collections.abc import Callable

from engine.replica.telemetry import Telemetry
from engine.scheduler.scheduler import Scheduler
from engine.spec.errors import EngineError, RankError

MAX_RESTARTS_WITHOUT_PROGRESS = 3


class Recovery:
    """Carries the sequences of failed ranks to new ones, unless ranks fail again and again.

    ``start`` starts new ranks, numbers their steps from the one it is given, and returns their
    scheduler, which is empty. Owned by the replica's thread.
    """

    def __init__(self, telemetry: Telemetry, start: Callable[[int], Scheduler]) -> None:
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
        """A step has finished, so earlier failures no longer count."""
        self._num_in_vain = 0

    def replace_ranks(
        self, scheduler: Scheduler, error: EngineError | OSError, *, is_stopping: Callable[[], bool]
    ) -> None:
        """Start new ranks; the sequences of ``scheduler`` go on there from their tokens so far.

        Ranks that cannot start count as failed. Once ``is_stopping``, ``scheduler`` keeps them.

        Raises:
            RankError: ranks failed too often without one finished step. After this and any other
                error ``scheduler`` has it all.
        """
        sequences = scheduler.release()
        try:
            fresh = self._start_again(scheduler.next_step_id, error, is_stopping)
        except BaseException:
            scheduler.adopt(sequences, is_in_book=True)
            raise
        if fresh is None:
            scheduler.adopt(sequences, is_in_book=True)  # for whoever stops this replica
            return
        if not sequences:  # nobody could have shown progress
            self._num_in_vain = 0
        fresh.adopt(sequences, is_in_book=True)
        fresh.packer.pace.learn_from(scheduler.packer.pace)

    def _start_again(
        self, first_step_id: int, error: EngineError | OSError, is_stopping: Callable[[], bool]
    ) -> Scheduler | None:
        """The scheduler of new ranks, None once ``is_stopping``; RankError after too many."""
        first = error
        while not is_stopping():
            self._num_in_vain += 1
            if self._num_in_vain > MAX_RESTARTS_WITHOUT_PROGRESS:
                then = "" if error is first else f"; then their start: {error}"
                raise RankError(
                    f"ranks failed {MAX_RESTARTS_WITHOUT_PROGRESS} times: {first}{then}"
                )
            self._telemetry.restarts += 1
            try:
                return self._start(first_step_id)
            except (EngineError, OSError) as again:
                error = again
        return None
