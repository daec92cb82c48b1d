"""Descriptions by name: those of this package, and those in a folder of the user's.

The folder is named by ``GEARSHIFT_CATALOG`` and has the sub-folders ``devices``, ``links``,
``backends`` and ``models``, each with one ``NAME.json`` a description. Installed packages bring
more: an entry point of ``gearshift.devices`` and so on names a function without arguments that
returns the ``Path`` of a ``NAME.json``. A name that is taken by a built-in description is refused,
so that a name means the same on every machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.spec.extensions import ExtensionPoint, make_extensions
from engine.spec.names import did_you_mean
from tuner.spec.errors import TunerError

VARIABLE = "GEARSHIFT_CATALOG"
BUILT_IN = "built in"
CURVES_SUFFIX = ".curves.json"
SUB_FOLDERS = ("devices", "links", "backends", "models")
_NAME = re.compile(r"[a-z][a-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """All descriptions of one kind. ``noun`` is what one is called, ``is_built_in`` whether a name
    is taken by one of this package, ``sub_folder`` where the user's are."""

    noun: str
    sub_folder: str
    is_built_in: Callable[[str], bool]

    @property
    def group(self) -> ExtensionPoint:
        """The entry points under which installed packages bring descriptions."""
        return ExtensionPoint(f"gearshift.{self.sub_folder}")

    def list_own(self) -> list[str]:
        """Names that are not built in, whether or not their files can be read."""
        return sorted(self._own_files())

    def find_own(self, name: str) -> Path | None:
        """The user's file of ``name``; None where there is none.

        Raises:
            TunerError: a name that is built in, or that no command could be given.
        """
        path = self._own_files().get(name)
        if path is None:
            return None
        if self.is_built_in(name):
            raise TunerError(
                f"{path}: {self.noun} {name!r} is built in; give yours another name, as in "
                f"my-{name}.json"
            )
        if not _NAME.fullmatch(name):
            raise TunerError(
                f"{path}: {name!r} is no name; write a small letter first, then small letters, "
                "digits, '.', '_' and '-'"
            )
        return path

    def origin(self, name: str) -> str:
        """Where ``name`` is described: ``built in``, or the user's file."""
        path = self._own_files().get(name)
        return BUILT_IN if path is None else str(path)

    def _own_files(self) -> dict[str, Path]:
        files, brought = self._folder_files(), self._brought_files()
        if twice := sorted(files.keys() & brought.keys()):
            name = twice[0]
            raise TunerError(f"{files[name]} and {brought[name]} have one name; keep one of them")
        return files | brought

    def _brought_files(self) -> dict[str, Path]:
        """What installed packages bring."""
        found = make_extensions(self.group, TunerError)
        for name, path in found.items():
            if not (isinstance(path, Path) and path.name == f"{name}.json" and path.is_file()):
                raise TunerError(
                    f"extension {name!r} of {self.group} gives {path!r}; it must give the Path of "
                    f"a file {name}.json"
                )
        return found

    def _folder_files(self) -> dict[str, Path]:
        catalog = own_folder()
        if catalog is None:
            return {}
        folder = catalog / self.sub_folder
        files = {
            path.name.removesuffix(".json"): path
            for path in folder.glob("*.json")
            if not path.name.endswith(CURVES_SUFFIX)
        }
        # A model may be a folder, as it is downloaded.
        if self.sub_folder == "models":
            folders = {path.parent.name: path for path in folder.glob("*/config.json")}
            if twice := sorted(files.keys() & folders.keys()):
                first, second = files[twice[0]], folders[twice[0]]
                raise TunerError(f"{first} and {second} have one name; keep one of them")
            files |= folders
        return files


@dataclass(frozen=True, kw_only=True)
class FileShelf:
    """A shelf whose built-in descriptions are the JSON files of ``folder``."""

    noun: str
    sub_folder: str
    folder: Path

    def list_names(self) -> list[str]:
        """Every name, the user's among them."""
        return sorted({*self._built_in(), *self.own.list_own()})

    def get_path(self, name: str, *, way_out: str = "") -> Path:
        """The file of ``name``.

        Raises:
            TunerError: no such name, with the nearest, the known ones and ``way_out``; or a name
                of the user's that is built in.
        """
        own = self.own.find_own(name)
        if own is not None:
            return own
        if name not in self._built_in():
            known = self.list_names()
            raise TunerError(
                f"{self.noun} {name!r} is not known{did_you_mean(name, known)}; known are "
                f"{', '.join(known)}{way_out}"
            )
        return self.folder / f"{name}.json"

    def where(self, path: Path) -> str:
        """What messages call ``path``: a built-in file by its name alone."""
        return path.name if path.parent == self.folder else str(path)

    @property
    def own(self) -> Shelf:
        """The user's part."""
        return Shelf(
            noun=self.noun,
            sub_folder=self.sub_folder,
            is_built_in=lambda name: name in self._built_in(),
        )

    def _built_in(self) -> set[str]:
        files = self.folder.glob("*.json")
        return {file.stem for file in files if not file.name.endswith(CURVES_SUFFIX)}


def own_folder() -> Path | None:
    """The user's folder, None where the variable is not set.

    Raises:
        TunerError: the variable names no folder, or one of its sub-folders is misspelt.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise TunerError(f"{VARIABLE}={text}: there is no such folder; name one, or unset it")
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise TunerError(f"{VARIABLE}={text}: cannot be read ({error.strerror})") from error
    for inner in found:
        hint = did_you_mean(inner.name, SUB_FOLDERS)
        if inner.is_dir() and inner.name not in SUB_FOLDERS and hint:
            raise TunerError(
                f"{inner}: not looked into{hint}; the sub-folders are {', '.join(SUB_FOLDERS)}"
            )
    return folder


def check_name(path: Path, name: str) -> None:
    """Raises TunerError where the file says another name than it has."""
    if path.stem != name:
        raise TunerError(f"{path}: name {name!r} is not the file's, {path.stem!r}")
