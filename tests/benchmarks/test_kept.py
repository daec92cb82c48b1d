"""Benchmarks that go on where they were interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.kept import KeptRuns


def store(file: Path, *, is_fresh: bool = False, **asked: Any) -> KeptRuns:
    return KeptRuns(file, asked=asked, empty={"runs": []}, is_fresh=is_fresh)


def test_the_same_command_finds_what_was_kept(tmp_path: Path) -> None:
    first = store(tmp_path / "kept.json", plans=("tp=1",))
    first.document["runs"].append(7)
    first.keep()
    assert store(tmp_path / "kept.json", plans=("tp=1",)).document["runs"] == [7]
    assert store(tmp_path / "kept.json", is_fresh=True, plans=("tp=1",)).document["runs"] == []


def test_runs_of_other_options_are_not_mixed_in(tmp_path: Path) -> None:
    store(tmp_path / "kept.json", seconds=5).keep()
    with pytest.raises(SystemExit, match="name another folder"):
        store(tmp_path / "kept.json", seconds=6)
