"""What a tuning job does, as it is watched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from api.cli.common import progress_bar, progress_console
from api.cli.tables import harmless

if TYPE_CHECKING:
    from api.clients.events import JobEvent


class TrialBar:
    """A bar over the trials of a tuning job on stderr, with lines above it; on a file or pipe there
    are the lines only."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = progress_bar(progress_console())
        self._task = self._bar.add_task("tune", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:  # elsewhere it would leave an empty line
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def advance(self) -> None:
        """One more trial has ended."""
        self._bar.update(self._task, advance=1)

    def follow(self, events: Iterable[JobEvent]) -> None:
        """Say every event of a job."""
        for line in told_lines(self._counted(events)):
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(harmless(line), highlight=False, markup=False, soft_wrap=True)

    def _counted(self, events: Iterable[JobEvent]) -> Iterator[JobEvent]:
        for event in events:
            if event.type == "trial":
                self.advance()
            yield event


def told_lines(events: Iterable[JobEvent]) -> Iterator[str]:
    """Each event in a line; what is the same as in the event before (the tuner's end and the job's)
    once."""
    last = ""
    for event in events:
        if event.told not in ("", last):
            yield f"{event.type}: {event.told}"
        last = event.told
