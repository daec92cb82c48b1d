"""Work that only the clock can tell of is watched by a bar over the seconds it is to take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from api.cli import clock_bar


def test_on_a_terminal_a_bar_follows_the_clock_below_the_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(clock_bar, "progress_console", lambda: terminal)
    with clock_bar.clock_bar("profile", 40.0) as say:
        say("profile: operators [all]")
    assert "profile: operators [all]" in shown.getvalue()
    assert " of about 40 s" in shown.getvalue()


def test_on_a_pipe_there_are_the_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    with clock_bar.clock_bar("profile", 40.0) as say:
        say("profile: operators")
    assert capsys.readouterr().err == "profile: operators\n"
