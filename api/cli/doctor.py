"""``gearshift doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.common import end, print_json
from api.cli.engine_options import JsonOption
from api.cli.exit_codes import ExitCode


def doctor(
    ports: Annotated[
        list[int] | None,
        typer.Option("--port", min=1, max=65535, help="Port to look at; by default 8700 and 8000."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at devices, links, versions, compiler, database and ports, and say what is missing.

    Nothing is set, started or kept. A mark of 'ok' is fine, 'note' is something that works without
    but would do better with, 'missing' keeps a part of Gearshift from working.

    Exit code 0: nothing is missing; 2: something is. Example: gearshift doctor --json
    """
    from api.doctor.checks import Mark, examine

    findings = examine(tuple(ports) if ports else None)
    is_well = all(finding.mark is not Mark.MISSING for finding in findings)
    if as_json:
        print_json({"is_well": is_well, "findings": [each.to_json() for each in findings]})
    else:
        for finding in findings:
            _say(f"{finding.mark:8} {finding.part:10}", finding.found)
            if finding.way_out is not None:
                _say(f"{'':19} ->", finding.way_out)
    if not is_well:
        end(ExitCode.MISTAKE)


def _say(begin: str, text: str) -> None:
    """``text`` beside ``begin``, on a terminal over as many lines as it takes, between words."""
    from textwrap import wrap

    from rich.console import Console

    console = Console()
    room = console.width - len(begin) - 1
    lines = [text]
    if console.is_terminal and room > 0:
        lines = wrap(text, room, break_long_words=False, break_on_hyphens=False)
    for nth, line in enumerate(lines):
        typer.echo(f"{begin if nth == 0 else ' ' * len(begin)} {line}")
