"""How far work is: a bar on stderr where someone watches, words where it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from api.cli.common import progress_bar, progress_console

if TYPE_CHECKING:
    from tuner.simulation.simulate import OnProgress

# Of a stage, how much is done and how much there is.
OnStage = Callable[[str, int, int], None]


@contextmanager
def stage_bar(title: str, unwatched: OnStage = lambda *_: None) -> Iterator[OnStage]:
    """A bar that starts anew with each stage; on a file or pipe ``unwatched`` is called instead."""
    console = progress_console()
    if not console.is_terminal:
        yield unwatched
        return
    with progress_bar(console) as bar:
        task = bar.add_task(title, total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {stage}", completed=done, total=total)

        yield show


class Watched:
    """``text``: how far the simulation is."""

    def __init__(self) -> None:
        self.text = "before it began"

    @contextmanager
    def stage(self, title: str) -> Iterator[OnProgress]:
        """A bar over requests that have ended."""
        with stage_bar(title) as bar:

            def show(now_s: float, num_ended: int, num_requests: int) -> None:
                so_far = f"{num_ended} of {num_requests} requests"
                self.text = f"after {now_s:.0f} s of the load, {so_far}"
                bar(f"{now_s:.0f} s simulated", num_ended, num_requests)

            yield show
