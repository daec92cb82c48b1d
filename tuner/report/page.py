"""A report as one HTML file: it loads nothing, and fits a telephone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from plotly.offline import get_plotlyjs

from tuner.pictures.page import CONFIG, NOTHING_LOADED, panel_figure, script_json
from tuner.pictures.picture import Panel
from tuner.report.report import Report, Section, Table, cell_text

STYLE = """
:root { color-scheme: light dark; --fg: #1a1a1a; --soft: #5c5c5c; --bg: #ffffff; --rule: #d9d9d9;
  --link: #0b5394; --head: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --fg: #e8e8e8; --soft: #a8a8a8; --bg: #16181b;
  --rule: #3a3d42; --link: #8ab4f8; --head: #212429; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 72rem; background: var(--bg);
  color: var(--fg); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; border-top: 1px solid var(--rule);
  padding-top: 1rem; }
p { margin: .3rem 0; } .facts { color: var(--soft); font-size: .92rem; }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .92rem; }
a { color: var(--link); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem .3rem; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th { background: var(--head); vertical-align: bottom; }
td:first-child:not(.number) { min-width: 8rem; }
.long { min-width: 10rem; }
.number { text-align: right; white-space: nowrap; }
.pictures { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 64rem) { .two { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
# Pictures are drawn in the colours of the page, and again when those change.
SCRIPT = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const draw = () => FIGURES.forEach((figure, number) => {
  const colours = dark.matches ? {"#000000": "#e8e8e8", "#e6e6e6": "#3a3d42"} : {};
  let text = JSON.stringify(figure);
  for (const [from, to] of Object.entries(colours)) text = text.replaceAll(from, to);
  const {data, layout} = JSON.parse(text);
  Plotly.react("picture-" + number, data, layout, CONFIG);
});
draw();
dark.addEventListener("change", draw);
"""


# Dragging zooms and a double click zooms out; buttons would lie over what is drawn.
LONG_CELL = 14
QUIET = {"displayModeBar": False}


def page_of_report(report: Report) -> str:
    """The whole page."""
    figures = [panel for section in report.sections for panel in section.panels]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_LOADED}">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body>\n"
        f"{''.join(_body(report))}{_script(figures)}</body></html>\n"
    )


def _script(panels: list[Panel]) -> str:
    figures = script_json([panel_figure(panel) for panel in panels])
    config = script_json({**CONFIG, **QUIET})
    return f"<script>const FIGURES = {figures}; const CONFIG = {config};{SCRIPT}</script>"


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>\n"
    yield from (f'<p class="facts">{escape(fact)}</p>\n' for fact in report.facts)
    links = (f'<a href="#{s.name}">{escape(s.heading)}</a>' for s in report.sections)
    yield f"<nav>{' '.join(links)}</nav>\n"
    number = 0
    for section in report.sections:
        yield from _section(section, number)
        number += len(section.panels)


def _section(section: Section, first_picture: int) -> Iterator[str]:
    yield f'<section id="{section.name}">\n<h2>{escape(section.heading)}</h2>\n'
    yield from (f"<p>{escape(line)}</p>\n" for line in section.lines)
    yield from map(_table, section.tables)
    if section.panels:
        beside = " two" if len(section.panels) > 1 else ""
        yield f'<div class="pictures{beside}">'
        for number in range(first_picture, first_picture + len(section.panels)):
            yield f'<div id="picture-{number}"></div>'
        yield "</div>\n"
    yield "</section>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _cell(cell: str | float | bool | None) -> str:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    is_long = isinstance(cell, str) and len(cell) > LONG_CELL
    kind = ' class="number"' if is_number else ' class="long"' if is_long else ""
    return f"<td{kind}>{escape(cell_text(cell))}</td>"
