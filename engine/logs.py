"""Logs of servers: one line per event on stderr, with the id of the request that caused it."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

# Modules of the engine log through the standard library; its warnings and errors are shown.
LIBRARY_LOGGER = "engine"


def configure_logs(level: str) -> None:
    """Send structlog's events to stderr, and the engine's warnings with them: coloured for a
    person, JSON for a machine."""
    is_person = sys.stderr.isatty()
    renderer: structlog.types.Processor = (
        _for_a_person() if is_person else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        *([] if is_person else [structlog.processors.format_exc_info]),
    ]
    stderr = cast(TextIO, _CurrentStderr())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stderr),
    )
    handler = logging.StreamHandler(stderr)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[remove, renderer], foreign_pre_chain=shared)
    )
    logging.getLogger(LIBRARY_LOGGER).handlers[:] = [handler]


def _for_a_person() -> structlog.dev.ConsoleRenderer:
    # The default shows local variables, keys among them, and took ten seconds for an error.
    return structlog.dev.ConsoleRenderer(
        colors=not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
    )


class _CurrentStderr:
    """Whatever ``sys.stderr`` is now: a logger outlives a redirection (tests, progress bars).

    A line that cannot be written, as on a full disk, is lost; whoever logged it goes on.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()
