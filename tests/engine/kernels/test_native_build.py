"""Compiled libraries are built once, whole, or not at all."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.kernels import native_build
from engine.kernels.native_build import SHARED_FLAGS, NativeSource, find_library
from engine.parallel.shm_build import SOURCE

needs_compiler = pytest.mark.skipif(
    native_build.find_compiler() is None, reason="no C++ compiler here"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native_build.NO_COMPILER_VARIABLE, raising=False)
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
    assert find_library(SOURCE) is None
    assert not cache.exists()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_no_file_behind(cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++")
    assert find_library(replace(SOURCE, main=broken)) is None
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_means_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv(native_build.NO_COMPILER_VARIABLE, raising=False)
    assert find_library(SOURCE) is None


@needs_compiler
def test_a_changed_part_is_another_library(cache: Path, tmp_path: Path) -> None:
    main, part = tmp_path / "main.cpp", tmp_path / "part.h"
    main.write_text('#include "part.h"\nextern "C" int answer() { return kAnswer; }')
    part.write_text("constexpr int kAnswer = 1;")
    source = NativeSource(name="answer", main=main, parts=(part,))
    first = find_library(source)
    part.write_text("constexpr int kAnswer = 2;")
    second = find_library(source)
    assert [ctypes.CDLL(str(path)).answer() for path in (first, second)] == [1, 2]
    assert len(list(cache.iterdir())) == 2


def test_processors_of_a_shared_cache_have_libraries_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path / "main.cpp"
    main.write_text("")
    any_processor = NativeSource(name="x", main=main, flags=SHARED_FLAGS)
    tuned = replace(any_processor, is_tuned=True)
    keys = [any_processor.key(), tuned.key()]
    monkeypatch.setattr(native_build, "processor_identity", lambda: "flags: fpu")
    assert any_processor.key() == keys[0]
    assert tuned.key() not in keys
