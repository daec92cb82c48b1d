"""A report: sections of words, tables and pictures, the same whatever it is written as."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from policies.numbers import short
from tuner.pictures.picture import Panel

SCHEMA = "report/v1"
Cell = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells by column; a number stays a number until it is written."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it; ``name`` is its place in a page."""

    name: str
    heading: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    panels: tuple[Panel, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.lines or self.tables or self.panels)

    def to_json(self) -> dict[str, Any]:
        """The report without its pictures, which show the same numbers."""
        return {
            "name": self.name,
            "heading": self.heading,
            "lines": list(self.lines),
            "tables": [table.to_json() for table in self.tables],
            "num_pictures": len(self.panels),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """An answer for readers. ``of`` is the schema of the document that it was made from."""

    of: str
    title: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "of": self.of,
            "title": self.title,
            "facts": list(self.facts),
            "sections": [section.to_json() for section in self.sections],
        }


def cell_text(cell: Cell) -> str:
    """A cell as a reader sees it."""
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case float() if math.isfinite(cell):
            return short(cell)
        case _:
            return str(cell)
