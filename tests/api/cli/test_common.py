"""What all commands print by."""

from __future__ import annotations

import pytest

from api.cli.common import log, print_lines, print_text
from api.cli.trial_bar import TrialBar


def test_no_line_of_others_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    wipe = "tuned\x1b[1A\x1b[2K\x9b2K"
    log(f"warning: {wipe}")
    print_lines([wipe, "next"])
    with TrialBar(1, 0) as bar:
        bar.say(wipe)
    said = capsys.readouterr()
    assert not any(sign in said.out + said.err for sign in "\x1b\x9b")
    assert said.out.splitlines()[1] == "next"
    assert said.err.count("tuned") == 2
    print_text("a script\r\n")
    assert capsys.readouterr().out == "a script\r\n", "into a pipe it goes as it is"
