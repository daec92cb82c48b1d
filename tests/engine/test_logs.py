"""What a person at a terminal reads of an error."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from engine.logs import configure_logs


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_error_at_a_terminal_shows_no_values_of_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    before = structlog.get_config()
    try:
        configure_logs("info")
        try:
            admin_key = "gs_secret".upper()
            _ = admin_key[99]
        except IndexError:
            structlog.get_logger("test").exception("it failed")
    finally:
        structlog.configure(**before)
    shown = sys.stderr.getvalue()
    assert "IndexError: string index out of range" in shown
    assert "GS_SECRET" not in shown
