"""Command lines as pages and helps show them, held against the commands' own options."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from api.cli import main
from api.cli.main import COMMANDS, CommandRef


def find_command(words: list[str]) -> tuple[CommandRef, list[str]]:
    """The command that the words after ``gearshift`` name, and its own words.

    Raises:
        AssertionError: there is none.
    """
    for ref in sorted(COMMANDS, key=lambda ref: -len(ref.path)):
        path = ref.path.split()
        if words[: len(path)] == path:
            return ref, words[len(path) :]
    raise AssertionError(f"gearshift {shlex.join(words)}: there is no such command")


def take(line: str) -> None:
    """Have the command of ``line``, which begins with ``gearshift``, read its words; it is not run.

    Raises:
        typer.TyperException: an option, a number or a choice that it does not take.
    """
    program, *words = shlex.split(line, comments=True)
    assert program == "gearshift", line
    ref, own = find_command(words)
    command: Any = typer.main.get_command(main._load(ref))
    command.make_context(ref.path, main._words(ref, own))
