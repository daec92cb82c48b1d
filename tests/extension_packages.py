"""The example packages under ``examples/extensions``, installed for one test."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from engine.spec import extensions
from tests.rooms import ROOT

FOLDER = ROOT / "examples" / "extensions"
PACKAGES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def forget_extensions() -> None:
    """Look for installed packages anew."""
    extensions._points.cache_clear()


def entry_points(package: str) -> dict[str, dict[str, str]]:
    """The entry points that a package's ``pyproject.toml`` names, by group."""
    project = tomllib.loads((FOLDER / package / "pyproject.toml").read_text())["project"]
    found: dict[str, dict[str, str]] = project["entry-points"]
    return found


def lay_out(package: str, folder: Path) -> Path:
    """Put a package into ``folder`` as an installer leaves it."""
    shutil.copytree(FOLDER / package, folder, dirs_exist_ok=True)
    record = folder / f"gearshift_{package}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points(package).items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (record / "entry_points.txt").write_text("\n".join(lines))
    return folder


def install(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay a package out, and have this process find it until the test ends."""
    monkeypatch.syspath_prepend(str(lay_out(package, folder)))
    forget_extensions()
