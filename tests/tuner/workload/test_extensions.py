"""A reader of another package is named by an entry point, as the how-to says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from tests.extension_packages import forget_extensions
from tests.rooms import ROOT

PAGE = ROOT / "docs" / "how-to" / "add-a-trace-reader.md"
INDENT = " " * 8


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the how-to's package, as an installer leaves it, where this process looks."""
    blocks: list[list[str]] = [[]]
    for line in PAGE.read_text().splitlines():
        if line.startswith(INDENT) or (not line and blocks[-1]):
            blocks[-1].append(line.removeprefix(INDENT))
        elif blocks[-1]:
            blocks.append([])
    code, points = ("\n".join(block).strip() for block in blocks if block)
    (tmp_path / "my_reader.py").write_text(code)
    record = tmp_path / "my_reader-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: my-reader\nVersion: 1.0\n")
    head = '[project.entry-points."gearshift.trace_readers"]'
    assert points.startswith(head)
    words = points.replace(head, "[gearshift.trace_readers]").replace('"', "")
    (record / "entry_points.txt").write_text(words)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_extensions()
    yield tmp_path
    monkeypatch.undo()
    forget_extensions()
    sys.modules.pop("my_reader", None)


def show(spec: str) -> Result:
    return CliRunner().invoke(create_app(), ["workload", "show", spec])


def test_the_how_tos_reader_is_found_by_its_word_and_named_where_a_line_is_wrong(
    installed: Path,
) -> None:
    trace = installed / "log"
    trace.write_text("10 8 4\n11.5 16 2\n12 8 4\n")
    done = show(f"spaced:{trace}")
    assert done.exit_code == 0, done.stderr
    assert "3" in done.stdout
    trace.write_text("10 8 4\nlate 1 1\n")
    wrong = show(f"spaced:{trace}")
    assert wrong.exit_code == 2
    assert "line 2" in wrong.stderr


def test_an_extension_that_cannot_be_loaded_is_one_line_with_its_name(installed: Path) -> None:
    (installed / "my_reader.py").write_text("raise ImportError('no such driver')")
    done = show("poisson:rate=1,input=8,output=4")
    assert done.exit_code == 2
    assert "'spaced' of gearshift.trace_readers" in done.stderr
    assert "no such driver" in done.stderr
    assert done.stderr.count("\n") == 1
