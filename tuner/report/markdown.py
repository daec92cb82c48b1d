"""A report as Markdown, without pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuner.report.report import Report, Section, Table, cell_text

TAG = re.compile(r"<(?=[A-Za-z/!?])")


def markdown_of(report: Report) -> str:
    """The whole report."""
    lines = [f"# {_plain(report.title)}", "", *(f"* {_plain(fact)}" for fact in report.facts)]
    for section in report.sections:
        lines += ["", *_section(section)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {_plain(section.heading)}"
    if section.lines:
        yield ""
        yield from (f"* {_plain(line)}" for line in section.lines)
    for table in section.tables:
        yield ""
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    yield _row(table.columns)
    yield "|" + "---|" * len(table.columns)
    for row in table.rows:
        yield _row(tuple(map(cell_text, row)))


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """One line, in which ``<`` begins no tag; one that begins none anyway, as in ``ms<=500``, stays
    (CommonMark, 6.6)."""
    return TAG.sub("&lt;", " ".join(text.split()))
