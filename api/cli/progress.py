"""Progress bars on stderr, drawn only where someone watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.cli.common import progress_bar, progress_console
from tuner.simulation.simulate import OnProgress, no_progress


@contextmanager
def request_progress(title: str) -> Iterator[OnProgress]:
    """A bar over requests that have ended; on a file or pipe nothing is drawn."""
    console = progress_console()
    if not console.is_terminal:
        yield no_progress
        return
    with progress_bar(console) as bar:
        task = bar.add_task(title, total=None)

        def show(now_s: float, num_ended: int, num_requests: int) -> None:
            text = f"{title}: {now_s:.0f} s simulated"
            bar.update(task, completed=num_ended, total=num_requests, description=text)

        yield show
