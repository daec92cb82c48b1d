"""The report that a tutorial quotes is the one that its commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.newcomer import TIMEOUT_S, Newcomer
from tests.docs.readme_commands import read_commands
from tests.rooms import ROOT

QUOTE = "> "


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_every_quoted_line_is_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorials" / "read-a-recommendation.md").read_text()
    newcomer = Newcomer(tmp_path)
    try:
        printed = "".join(newcomer.run(command)[1] for command in read_commands(page)).splitlines()
    finally:
        newcomer.close()
    quoted = [line.removeprefix(QUOTE) for line in page.splitlines() if line.startswith(QUOTE)]
    assert quoted
    assert [line for line in quoted if line not in printed] == []
