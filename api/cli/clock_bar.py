"""A bar over the time that work is to take, where nothing else says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from api.cli.common import log, progress_console
from api.cli.tables import harmless


@contextmanager
def clock_bar(title: str, seconds: float) -> Iterator[Callable[[str], None]]:
    """Yields what says a line above the bar; on a file or pipe there are the lines only."""
    console = progress_console()
    if not console.is_terminal:
        yield log
        return
    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.elapsed:.0f} of about {task.total:.0f} s"),
    )
    with _Clock(*columns, console=console, transient=True) as bar:
        bar.add_task(title, total=seconds)
        yield lambda line: bar.console.print(
            harmless(line), highlight=False, markup=False, soft_wrap=True
        )


class _Clock(Progress):
    """Each look at it sets the bar by the clock."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.completed = min(task.elapsed or 0.0, task.total or 0.0)
        yield from super().get_renderables()
