"""How strongly an option was given: the command line wins over a file."""

from __future__ import annotations

from typing import Any

import typer

# Where a value comes from, weakest first: the default, a file, a variable, the command line.
_STRENGTH = {"DEFAULT": 0, "DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}


def strength(ctx: typer.Context, name: str) -> int:
    """0 for what nobody named; larger is stronger."""
    source = ctx.get_parameter_source(name)
    return 0 if source is None else _STRENGTH.get(source.name, 0)


def strongest(ctx: typer.Context, values: dict[str, str | None]) -> list[str]:
    """The values for one thing that are given most strongly, each once; ``values`` by option."""
    given = {name: value for name, value in values.items() if value is not None}
    most = max((strength(ctx, name) for name in given), default=0)
    found = (value for name, value in given.items() if strength(ctx, name) == most)
    return list(dict.fromkeys(found))


def is_in_arguments(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, where the list of processes shows it."""
    return strength(ctx, name) == _STRENGTH["COMMANDLINE"]


ANSWER, CONFIG = "gearshift.answer", "gearshift.config"


def set_defaults(ctx: typer.Context, kind: str, defaults: dict[str, Any]) -> None:
    """Make these the defaults of the command's options; those of a config file go first."""
    ctx.meta[kind] = defaults
    ctx.default_map = {**ctx.meta.get(ANSWER, {}), **ctx.meta.get(CONFIG, {})}
