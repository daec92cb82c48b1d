"""What every command shares: one JSON object on stdout, one line and exit code 2 on a mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console

EXIT_MISTAKE = 2
# The command did its work, and the answer is that the SLA is not met.
EXIT_NOT_MET = 3
# As shells say of a command that Ctrl-C ended.
EXIT_INTERRUPTED = 130
# The root of each package's error tree (STYLE rule 14).
ERROR_ROOTS = (
    ("engine.spec.errors", "EngineError"),
    ("policies.errors", "PolicyInputError"),
    ("tuner.spec.errors", "TunerError"),
    ("store.errors", "StoreError"),
)


def print_json(value: Any) -> None:
    """Print one JSON value on one line of stdout. Raises ValueError for NaN and infinity."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def fail(message: str) -> NoReturn:
    """Print one line on stderr and leave with exit code 2."""
    line = " ".join(message.split())
    typer.echo(f"error: {line}", err=True)
    sys.exit(EXIT_MISTAKE)


def end_not_met() -> NoReturn:
    """Leave with exit code 3, by which a script can tell an SLA that is not met from a mistake."""
    sys.exit(EXIT_NOT_MET)


def end_interrupted() -> NoReturn:
    """Leave with exit code 130, after Ctrl-C."""
    sys.exit(EXIT_INTERRUPTED)


def log(message: str) -> None:
    """Print one line of progress on stderr; stdout stays for the answer."""
    typer.echo(message, err=True)


def progress_console() -> Console:
    """A rich console on stderr, for progress bars and tables that are not the answer."""
    return Console(stderr=True)


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn what a user or a file can cause into :func:`fail`; anything else passes through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, _domain_error_types()):
            fail(str(error))
        raise


def _domain_error_types() -> tuple[type[Exception], ...]:
    # An error of a tree whose module was never imported cannot have been raised.
    return tuple(
        getattr(sys.modules[module], name) for module, name in ERROR_ROOTS if module in sys.modules
    )
