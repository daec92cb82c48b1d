"""How far a simulation is: a bar on stderr where someone watches, words where it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.cli.common import progress_bar, progress_console
from tuner.simulation.simulate import OnProgress


class Watched:
    """``text``: how far the simulation is."""

    def __init__(self) -> None:
        self.text = "before it began"

    @contextmanager
    def stage(self, title: str) -> Iterator[OnProgress]:
        """A bar over requests that have ended; on a file or pipe nothing is drawn."""
        console = progress_console()
        if not console.is_terminal:
            yield self._keep
            return
        with progress_bar(console) as bar:
            task = bar.add_task(title, total=None)

            def show(now_s: float, num_ended: int, num_requests: int) -> None:
                self._keep(now_s, num_ended, num_requests)
                text = f"{title}: {now_s:.0f} s simulated"
                bar.update(task, completed=num_ended, total=num_requests, description=text)

            yield show

    def _keep(self, now_s: float, num_ended: int, num_requests: int) -> None:
        self.text = f"after {now_s:.0f} s of the load, {num_ended} of {num_requests} requests"
