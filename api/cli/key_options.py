"""Keys as commands are given them: by a variable or a file, rather not by an option."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.common import fail, log
from api.cli.given import is_in_arguments

CONTROL_KEY_VARIABLE = "GEARSHIFT_CONTROL_KEY"
ENGINE_KEY_VARIABLE = "GEARSHIFT_ENGINE_KEY"
KNOB_KEY_VARIABLE = "GEARSHIFT_KNOB_KEY"
MOST_KEY_LETTERS = 4096


def key_option(variable: str, says: str) -> Any:
    """An option for a key, which is better given by ``variable``: it warns of its own use."""
    return typer.Option(envvar=variable, help=says, callback=_checked)


@dataclass(frozen=True, kw_only=True)
class ServerKey:
    """The key that a server asks of those who use it, if it asks for one."""

    api_key: Annotated[
        str | None,
        key_option(
            ENGINE_KEY_VARIABLE,
            "The server's key; give it by the variable or a file, since options show in the list "
            "of processes.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File that holds the server's key, before any other."),
    ] = None

    def __post_init__(self) -> None:
        """End before any work where the file holds no key."""
        _ = self.key

    @cached_property
    def key(self) -> str | None:
        """The key, wherever it stands; None: there is none. Ends where its file has none."""
        if self.api_key_file is None:
            return self.api_key or None
        return read_key_file("--api-key-file", self.api_key_file)


def read_key_file(option: str, path: Path) -> str:
    """The key in the file that ``option`` names. Ends where there is none."""
    try:
        with path.open() as file:
            key = file.read(MOST_KEY_LETTERS).strip()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        fail(f"{option} {path} cannot be read: {reason}")
    if not key:
        fail(f"{option} {path} is empty")
    _require_sendable(f"{option} {path}", key)
    return key


def _checked(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """A key that can be sent, with a warning where everybody on the machine can read it."""
    if not value or ctx.resilient_parsing:
        return value
    option, variable = f"--{str(param.name).replace('_', '-')}", str(param.envvar)
    is_shown = is_in_arguments(ctx, str(param.name))
    _require_sendable(option if is_shown else variable, value)
    if is_shown:
        log(f"warning: {option} shows in the list of processes; give the key by {variable}")
    return value


def _require_sendable(place: str, key: str) -> None:
    """End where a key could not stand in a header; it is not repeated, as errors are kept."""
    if not (key.isascii() and key.isprintable() and " " not in key):
        fail(f"{place}: no key, which is one word of letters, digits and signs of ASCII")
