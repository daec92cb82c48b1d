"""Command lines as pages and helps show them, held against the commands' own options."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from api.cli import main
from api.cli.commands import COMMANDS, CommandRef

OF_THE_PROGRAM = ("--help", "--version", "--install-completion", "--show-completion")
FROM = "--from"


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
    program, *words = shlex.split(line)
    assert program == "gearshift", line
    if words[0] in OF_THE_PROGRAM:
        return
    ref, own = find_command([word for word in words if word != "--help"])
    if FROM in own:  # it reads the file at once
        at = own.index(FROM)
        del own[at : at + 2]
    command: Any = typer.main.get_command(main._load(ref))
    command.make_context(ref.path, main._words(ref, own))
