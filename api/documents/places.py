"""Folders that files named in requests lie under. Text is checked by the service, files by the job.

A request may name any path. The service looks at its text and whether such a name is there; it
opens nothing and follows no link at its end, so that no pipe or device can hold it up. The job's
own process then looks where the path really leads.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError
from tuner.work.models import CONFIG
from tuner.workload.spec import WorkloadSpec

MAX_TRACE_BYTES = 512 * 2**20
# config.json and its kind; weights may be as large as they are.
MAX_CONFIG_BYTES = 16 * 2**20
MAX_MODEL_FILES = 10_000
# A model's name, as published or of the catalog: nothing that leads out of a folder.
_NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folders of one kind of file. ``variable`` is the setting that names them."""

    noun: str
    variable: str
    folders: tuple[Path, ...]

    def candidates(self, text: str) -> list[Path]:
        """Where ``text`` may lie, by its text alone; a relative path begins at each folder.

        Raises:
            TunerError: in none of the folders.
        """
        found = []
        for folder in self.folders:
            path = Path(os.path.normpath(folder / text))
            if path.is_relative_to(os.path.normpath(folder)) and "\0" not in text:
                found.append(path)
        if not found:
            raise TunerError(f"{text!r} {self._outside}")
        return found

    def require_name(self, text: str, *inner: str) -> None:
        """Refuse ``text`` where nothing of that name is, or nothing of the names in it.

        Raises:
            TunerError: in none of the folders, or not there.
        """
        found = next((p for p in self.candidates(text) if os.path.lexists(p)), None)
        if found is None:
            raise TunerError(f"{self.noun} {self.candidates(text)[0]}: there is no such file")
        for name in inner:
            if found.suffix != Path(name).suffix and not os.path.lexists(found / name):
                raise TunerError(f"{self.noun} {found}: has no {name}")

    def resolve(self, text: str) -> Path:
        """The file or folder that ``text`` leads to, links followed.

        Raises:
            TunerError: there is none, or it leads out of the folders.
        """
        candidates = self.candidates(text)
        path = next((path for path in candidates if path.exists()), candidates[0])
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "a link that goes in circles"
            raise TunerError(f"{self.noun} {path}: cannot be read ({reason})") from error
        if not any(real.is_relative_to(folder.resolve()) for folder in self.folders):
            raise TunerError(f"{text!r} leads to {real}, which {self._outside}")
        return real

    @property
    def _outside(self) -> str:
        shown = ", ".join(map(str, self.folders))
        return (
            f"is not in the folder of {self.noun}s ({shown}); put it there, or start the service "
            f"with {self.variable}"
        )


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where models and traces of tuning jobs lie."""

    models: Place
    traces: Place

    def check_model(self, text: str) -> None:
        """Raises TunerError for a model folder outside, or one that is not there."""
        self.models.require_name(text, CONFIG)

    def check_workload(self, text: str) -> None:
        """Raises TunerError for a trace outside or not there; WorkloadError for a SPEC."""
        path = WorkloadSpec.parse(text).path
        if path is not None:
            self.traces.require_name(str(path))

    def confine(self, spec: TuningSpec) -> TuningSpec:
        """The specification with paths as they really are. Call in the job's process.

        Raises:
            TunerError: a path that leads out of its folders, no regular file, or one too large.
        """
        return self.confine_model(self._confine_trace(spec))

    @staticmethod
    def check_engine(spec: TuningSpec) -> None:
        """Raises TunerError where a job would run a command: over REST nobody may name one."""
        if spec.is_served:
            raise TunerError(
                f"engine {spec.engine!r}: only gearshift tune on the command line runs others; "
                "a job of the service tunes engines of this project"
            )

    def confine_model(self, spec: TuningSpec) -> TuningSpec:
        """:meth:`confine` for the model alone."""
        self.check_engine(spec)
        if spec.is_local or not is_name(spec.model_dir):
            folder = self.models.resolve(spec.model_dir)
            self._check_model_files(folder)
            spec = replace(spec, model_dir=str(folder))
        return spec

    def _confine_trace(self, spec: TuningSpec) -> TuningSpec:
        workload = WorkloadSpec.parse(spec.workload)
        if workload.path is None:
            return spec
        path = self.traces.resolve(str(workload.path))
        _require_regular(path, MAX_TRACE_BYTES)
        return replace(spec, workload=workload.at(path))

    def _check_model_files(self, path: Path) -> None:
        """Whatever of the folder may be read is a regular file in one of the folders."""
        files = [path] if not path.is_dir() else list(path.iterdir())
        if len(files) > MAX_MODEL_FILES:
            raise TunerError(f"model {path}: {len(files)} files; at most {MAX_MODEL_FILES} may be")
        for file in files:
            real = self.models.resolve(str(file))
            if not real.is_dir():
                is_small = file.suffix == ".json" and file.name != "tokenizer.json"
                _require_regular(real, MAX_CONFIG_BYTES if is_small else None)


def is_name(model: str) -> bool:
    """Whether ``model`` can be a name on described hardware: not a path to a folder."""
    return _NAME.fullmatch(model) is not None and model != CONFIG


def _require_regular(path: Path, most_bytes: int | None) -> None:
    """Raises TunerError for a pipe, a device, or a file that is too large. Nothing is opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise TunerError(f"{path}: is no regular file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise TunerError(f"{path}: has {found.st_size} bytes; at most {most_bytes} may be")
