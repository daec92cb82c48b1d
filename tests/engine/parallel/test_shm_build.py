"""The compiled collectives are built once, whole, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.parallel import shm_build
from engine.parallel.shm_layout import HEADER_BYTES, GroupSpec, Segment, lay_out

needs_compiler = pytest.mark.skipif(
    shm_build.find_compiler() is None, reason="no C++ compiler here"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(shm_build.NO_COMPILER_VARIABLE, raising=False)
    return tmp_path / "gearshift"


@needs_compiler
def test_processes_that_start_at_once_share_one_whole_library(cache: Path) -> None:
    code = (
        "import ctypes; from engine.parallel.shm_build import find_library; "
        "ctypes.CDLL(str(find_library())).gs_open"
    )
    starts = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [start.wait() for start in starts] == [0, 0, 0]
    assert len(list(cache.iterdir())) == 1


def test_without_a_compiler_there_is_no_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert shm_build.find_library() is None
    assert not cache.exists()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_no_file_behind(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(shm_build, "SOURCE", broken)
    assert shm_build.find_library() is None
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_means_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv(shm_build.NO_COMPILER_VARIABLE, raising=False)
    assert shm_build.find_library() is None


def test_regions_follow_each_other_without_overlap() -> None:
    groups = [
        GroupSpec(name="tp", members=(0, 1)),
        GroupSpec(name="shift", members=(0, 2, 1, 3)),
    ]
    first, second = lay_out(groups)
    assert first.offset == HEADER_BYTES
    assert first.counters < first.slots < first.rings < first.end == second.offset
    assert {x % 4096 for x in (first.slots, second.offset, second.slots)} == {0}


def test_the_first_abort_is_the_one_that_counts() -> None:
    segment = Segment.create()
    segment.abort(3)
    segment.abort(1)
    assert int.from_bytes(segment.memory[:8], "little") == 4
    segment.close()
    segment.close()
