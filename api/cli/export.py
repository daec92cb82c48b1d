"""``gearshift export``: how to start an answer's settings on a serving system."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.answers import ChoiceOption, find_answer
from api.cli.common import fail, print_json, print_text
from api.cli.engine_options import JsonOption

FORMATS = "gearshift|vllm|arctic|sglang|trtllm"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID",
            help="Report of plan --out or tune --out, rec_ID, or its address at a control plane.",
        ),
    ],
    system: Annotated[str, typer.Option("--format", metavar=FORMATS, help="The serving system.")],
    choice: ChoiceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the command that starts an answer on a serving system, to be pasted into a shell.

    What to mind is written as comments, a file that the command reads before it.
    """
    from msgspec import to_builtins

    from api.documents.launch import launch_for
    from engine.spec.names import did_you_mean
    from tuner.launch.command import System

    known = [each.value for each in System]
    if system not in known:
        near = did_you_mean(system, known)
        fail(f"--format {system!r}{near}: known are {', '.join(known)}")
    launch = launch_for(find_answer(source, choice).launch, System(system))
    if as_json:
        print_json({**to_builtins(launch), "script": launch.script})
    else:
        print_text(launch.script)
