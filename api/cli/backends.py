"""``gearshift backends show``: a serving system as it is simulated, setting by setting."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from api.cli.common import print_json
from api.cli.engine_options import JsonOption


def show(
    backend: Annotated[str, typer.Argument(help="As in vllm, vllm@0.12 or trtllm.")],
    hardware: Annotated[
        str | None, typer.Option(help="Described hardware, as in 8xh200, whose caps are shown.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List every setting of a serving system: its value, where that is from, and what it does.

    --backend-set KEY=VALUE changes one where --backend is taken; so do words after a comma, as in
    vllm@0.12,async_scheduling=on, which the service takes too.
    """
    from rich.console import Console
    from rich.table import Table

    from tuner.described.catalog import backend_settings

    shown = backend_settings(backend, hardware)
    if as_json:
        print_json(asdict(shown))
        return
    console = Console()
    console.print(f"{shown.choice}: {shown.title}; {shown.source}", highlight=False)
    table = Table("setting", "value", "from", "what it is")
    for setting in shown.settings:
        table.add_row(setting.key, _text(setting.value), setting.origin, setting.about)
    console.print(table)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
