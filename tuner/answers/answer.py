"""What every answer can do: be read as JSON, tabulated, drawn, and shown in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.described.title import Title

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from tuner.pictures.picture import Picture


class Answer(ABC):
    """An answer of ``simulate``, ``plan``, ``capacity`` or ``tune``."""

    @property
    @abstractmethod
    def title(self) -> Title:
        """What was asked, and what answers it."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """One line that says what came out."""

    @cached_property
    @abstractmethod
    def document(self) -> dict[str, Any]:
        """What the command of the same name writes with ``--json``."""

    @abstractmethod
    def summary(self) -> pd.DataFrame:
        """The few rows that a reader looks at first."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Everything that was looked at, one row each."""

    @abstractmethod
    def picture(self) -> Picture:
        """What :meth:`plot` draws."""

    def plot(self, path: Path | str | None = None) -> go.Figure:
        """Draw the answer, as ``--plot`` does: a figure that a notebook shows, and a file
        (``.html``, ``.svg``, ``.png`` or ``.pdf``) where a path is given.

        Raises:
            TunerError: what draws it is not installed (``pip install 'gearshift[plots]'``), or
                another kind of file.
            OSError: the file cannot be written.
        """
        from tuner.pictures.draw import PAGE, draw, require_drawing

        require_drawing(PAGE)
        import plotly.graph_objects as go

        from tuner.pictures.page import figure_of

        drawn = self.picture()
        if path is not None:
            draw(Path(path), drawn)
        return go.Figure(figure_of(drawn))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline}>"

    def _repr_html_(self) -> str:
        parts = "<br>".join(map(escape, self.title.parts))
        warnings = "".join(f"<li>{escape(each)}</li>" for each in self.document["warnings"])
        table = self.summary().to_html(border=0, na_rep="-", float_format="{:.4g}".format)
        return (
            f"<div><b>{escape(self.headline)}</b><br><small>{parts}</small>\n{table}\n"
            f"<ul>{warnings}</ul></div>"
        )
