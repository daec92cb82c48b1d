"""Tables of what a service keeps: a row of each, in 80 columns or as wide as the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

import typer

GAP = 2
# The longest cell that is never folded: a time, a state, two or three short words.
SHORT_CHARS = 16
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column, an id to be copied, stands whole; other cells take as many
    lines as they need, broken between words where these have room. Without rows: none."""
    from rich.console import Console
    from rich.table import Column, Table

    told = [tuple(map(harmless, row)) for row in rows]
    if not told:
        typer.echo("none")
        return
    # What others wrote is no markup.
    console = Console(markup=False, highlight=False)
    room = console.width - GAP * (len(headings) - 1)
    widths = _widths([list(cells) for cells in zip(headings, *told, strict=True)], room)
    columns = [
        Column(name, width=width, overflow="fold")
        for name, width in zip(headings, widths, strict=True)
    ]
    table = Table(*columns, box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for row in told:
        table.add_row(*row)
    console.print(table)


def harmless(text: str) -> str:
    """What others wrote, without what would steer a terminal: a name or a reason could wipe out
    the lines above it."""
    return STEERING.sub(lambda sign: f"\\x{ord(sign[0]):02x}", text)


def minute(moment: datetime) -> str:
    """A time of the list, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M}"


def _widths(columns: list[list[str]], room: int) -> list[int]:
    """What each column gets: the first all it wants, the others their short cells and longest
    words, less where there is no room for these, more as long as there is some."""
    wanted = [max(map(len, cells)) for cells in columns]
    words = [max(map(_unbroken, cells)) for cells in columns]
    widths = [wanted[0], *words[1:]]
    while sum(widths) > room and max(widths[1:]) > 1:
        widths[1 + widths[1:].index(max(widths[1:]))] -= 1
    while sum(widths) < room and widths != wanted:
        lacking = [want - width for want, width in zip(wanted, widths, strict=True)]
        widths[lacking.index(max(lacking))] += 1
    return widths


def _unbroken(cell: str) -> int:
    """Characters of a cell that are better not broken."""
    if len(cell) <= SHORT_CHARS:
        return len(cell)
    return max(map(len, cell.split()))
