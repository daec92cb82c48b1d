"""Logs of the service: one line per event on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog


def configure_logs(level: str) -> None:
    """Send structlog's events to stderr: coloured for a person, JSON for a machine."""
    is_person = sys.stderr.isatty()
    renderer: structlog.types.Processor = (
        _for_a_person() if is_person else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if is_person else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _CurrentStderr())),
    )


def _for_a_person() -> structlog.dev.ConsoleRenderer:
    # The default shows local variables, keys among them, and took ten seconds for an error.
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


class _CurrentStderr:
    """Whatever ``sys.stderr`` is now: a logger outlives a redirection (tests, progress bars)."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
