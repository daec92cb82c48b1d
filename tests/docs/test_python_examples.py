"""The Python that pages show for questions runs as it stands, in an empty folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import ROOT

PAGES = ("docs/python.md", "docs/index.md", "docs/tutorials/how-many-gpus.md")
# Questions that need nothing beside the installed package.
QUESTION = re.compile(r"from gearshift import (simulate|plan|capacity)$")


def _examples() -> Iterator[tuple[str, str]]:
    """Indented blocks that begin with such an import: the page, and the code."""
    for page in PAGES:
        code: list[str] = []
        for line in [*(ROOT / page).read_text().splitlines(), "end"]:
            if code and (line.startswith("    ") or not line.strip()):
                code.append(line[4:])
            elif code:
                yield page, "\n".join(code)
                code = []
            elif line.startswith("    ") and QUESTION.match(line.strip()):
                code.append(line[4:])


EXAMPLES = list(_examples())


def test_every_page_shows_one() -> None:
    assert sorted({page for page, _ in EXAMPLES}) == sorted(PAGES)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page for page, _ in EXAMPLES])
def test_an_example_runs_as_it_stands(
    page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
