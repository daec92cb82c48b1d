"""Commands of a page and the output printed under them, as a newcomer would copy them.

An indented block holds lines that begin with ``$ ``, continued by a backslash, each followed by
what it printed. ``<!-- same every time -->`` before a block says that its output depends on nothing
but the command; ``...`` in an output stands for lines left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SAME_EVERY_TIME = "<!-- same every time -->"
ELLIPSIS = "..."
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(gearshift .*)")
# What a shell takes from a line: comments, redirections, the background.
_BEHIND = re.compile(r"\s+(?:#|2?>|&|\|)(?:\s|$)")


@dataclass(frozen=True, kw_only=True)
class ShownCommand:
    """One command and the lines shown under it, without their indent."""

    text: str
    output: tuple[str, ...]
    is_same_every_time: bool

    @property
    def is_server(self) -> bool:
        """Whether it goes on until it is told to end."""
        return " serve" in self.text and not self.text.startswith("curl")


def read_commands(page: str) -> list[ShownCommand]:
    """The commands of ``page`` in order."""
    found: list[ShownCommand] = []
    for block, is_same in _blocks(page):
        command: list[str] = []
        output: list[str] = []
        is_open = False
        for line in [*block, "$ "]:
            if line.startswith("$ "):
                if command:
                    found.append(
                        ShownCommand(
                            text=" ".join(command),
                            output=tuple(_trimmed(output)),
                            is_same_every_time=is_same,
                        )
                    )
                command, output = [line[2:].rstrip("\\").strip()], []
                is_open = line.endswith("\\")
            elif is_open:
                command.append(line.rstrip("\\").strip())
                is_open = line.endswith("\\")
            else:
                output.append(line.rstrip())
    return found


def list_lines(page: str) -> list[str]:
    """Every ``gearshift`` command in a block of ``page``, whole, without what a shell does with it:
    variables before, redirections and comments behind. Those with ``...`` for words left out are
    not."""
    found: list[str] = []
    is_open = False
    for line in page.splitlines():
        text = line.strip().removeprefix("$ ")
        if is_open:
            found[-1] += " " + text
        elif line.startswith("    ") and (match := _COMMAND.match(text)):
            found.append(match[1])
        else:
            continue
        is_open = found[-1].endswith("\\")
        found[-1] = found[-1].rstrip("\\").rstrip()
    whole = (_BEHIND.split(line)[0] for line in found)
    return [line for line in whole if ELLIPSIS not in line.split()]


def missing_part(shown: tuple[str, ...], printed: str) -> str | None:
    """The first part of what is shown, between lines left out, that was not printed; wherever lines
    break, as the page may break long ones."""
    left = _words(printed)
    parts: list[list[str]] = [[]]
    for line in shown:
        if line.strip() == ELLIPSIS:
            parts.append([])
        else:
            parts[-1].append(line)
    for part in filter(None, (_words(" ".join(lines)) for lines in parts)):
        _, found, left = left.partition(part)
        if not found:
            return part
    return None


def _blocks(page: str) -> Iterator[tuple[list[str], bool]]:
    lines: list[str] = []
    is_same = is_marked = False
    for line in [*page.splitlines(), "end"]:
        if line.startswith("    ") or (lines and not line.strip()):
            if not lines:
                is_same, is_marked = is_marked, False
            lines.append(line[4:])
            continue
        if lines and lines[0].startswith("$ "):
            yield lines, is_same
        lines = []
        if line.strip():
            is_marked = line.strip() == SAME_EVERY_TIME


def _trimmed(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


def _words(text: str) -> str:
    return " ".join(text.split())
