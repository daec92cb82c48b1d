"""What every command shares: one JSON object on stdout, one line on stderr where it fails."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from api.cli.exit_codes import ExitCode
from api.cli.tables import harmless

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Column

# The root of each package's error tree (STYLE rule 14).
ERROR_ROOTS = (
    ("engine.spec.errors", "EngineError"),
    ("policies.errors", "PolicyInputError"),
    ("tuner.spec.errors", "TunerError"),
    ("store.errors", "StoreError"),
)
# Of these, the errors that say that a part of ours died.
PART_ERRORS = (("engine.spec.errors", "RankError"),)


def print_json(value: Any) -> None:
    """Print one JSON value on one line of stdout. Raises ValueError for NaN and infinity.

    Letters that the terminal may not have are written as JSON writes them: what Python puts in
    their place (``\\xe9``) is none.
    """
    typer.echo(json.dumps(value, ensure_ascii=not _has_all_letters(), allow_nan=False))


def _has_all_letters() -> bool:
    try:
        return codecs.lookup(sys.stdout.encoding).name == "utf-8"
    except (AttributeError, LookupError, TypeError):  # replaced by something with no encoding
        return False


def print_lines(lines: list[str]) -> None:
    """Print lines of the answer. Servers and files may have a part in them, so they come without
    what would steer a terminal."""
    typer.echo("\n".join(map(harmless, lines)))


def print_line(line: str) -> None:
    """Print one line of the answer, as :func:`print_lines`."""
    print_lines([line])


def print_text(text: str) -> None:
    """Print a text whole: as it is into a file or pipe, without what would steer it to a
    terminal."""
    typer.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)


def fail(message: str, code: ExitCode = ExitCode.MISTAKE) -> NoReturn:
    """Print one line on stderr and leave with ``code``."""
    line = " ".join(message.split())
    typer.echo(f"error: {harmless(line)}", err=True)
    end(code)


def end(code: ExitCode) -> NoReturn:
    """Leave with ``code``."""
    sys.exit(code.value)


def end_not_met() -> NoReturn:
    """Leave because nothing meets the SLA, which a script can tell from a mistake."""
    end(ExitCode.NOT_MET)


def end_interrupted() -> NoReturn:
    """Leave after Ctrl-C, what was found so far having been told."""
    end(ExitCode.INTERRUPTED)


def settings_column() -> Column:
    """A column of a table that shows settings whole: a plan with its rungs is one long word."""
    from rich.table import Column

    return Column("settings", overflow="fold")


def log(message: str) -> None:
    """Print one line of progress on stderr; stdout stays for the answer."""
    typer.echo(harmless(message), err=True)


def progress_console() -> Console:
    """A rich console on stderr, for progress bars and tables that are not the answer."""
    return Console(stderr=True)


def progress_bar(console: Console, *, is_kept: bool = False) -> Progress:
    """A bar with what is done, the time it took and the time that is left; ``is_kept``: it stays
    on the screen when it has ended."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not is_kept,
    )


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn what a user, a file or a rank can cause into :func:`fail`; the rest passes through.

    A file that cannot be used is the user's, whatever the command wanted with it; a rank or front
    end that died is no mistake of theirs.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, _loaded(PART_ERRORS)):
            fail(str(error), ExitCode.FAULT)
        if isinstance(error, _loaded(ERROR_ROOTS)):
            fail(str(error))
        if isinstance(error, OSError) and error.filename is not None:
            fail(f"cannot use {error.filename}: {error.strerror}")
        raise


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    # An error of a tree whose module was never imported cannot have been raised.
    return tuple(
        getattr(sys.modules[module], name) for module, name in names if module in sys.modules
    )
