"""``--plot FILE`` of commands whose answers can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.groups import Output, check_writable, writing

if TYPE_CHECKING:
    from tuner.pictures.picture import Picture


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Where the answer is drawn, if anywhere."""

    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the answer: .html (hover, zoom, works offline), .svg, .png or .pdf.",
        ),
    ] = None

    def check(self) -> None:
        """End before any work where the picture could not be written after it.

        Raises:
            TunerError: it could not be drawn.
        """
        if self.plot is not None:
            from tuner.pictures.draw import check_plot

            check_writable(self.plot)
            check_plot(self.plot)

    def draw(self, picture: Callable[[], Picture]) -> None:
        """Draw what ``picture`` makes, if a file is named; end where it cannot be written."""
        if self.plot is not None:
            from tuner.pictures.draw import draw

            with writing():
                draw(self.plot, picture())


@dataclass(frozen=True, kw_only=True)
class DrawnOutput(Plot, Output):
    """Where the JSON document goes, and where it is drawn."""

    def check(self) -> None:
        """End before any work where a file could not be written after it."""
        Output.check(self)
        Plot.check(self)
