"""How requests are sampled that do not say how: as a checkpoint's makers recommend, or
neutrally."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from engine.spec.errors import CheckpointError, RequestError
from engine.spec.request import SamplingParams

GENERATION_FILE = "generation_config.json"


class DefaultsSource(StrEnum):
    """Where defaults come from, in vLLM's words: the model's folder, or no file at all."""

    AUTO = "auto"
    VLLM = "vllm"


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Values that stand in for those that a request leaves out, named as in ``SamplingParams``.

    Without a file they are neutral. ``max_new_tokens`` limits every request's output, even if it
    asks for more (None: no limit but the context).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None

    @classmethod
    def read(cls, source: str, model_dir: Path) -> Self:
        """The defaults of ``source``: ``auto`` for the model's own ``generation_config.json``,
        ``vllm`` for neutral ones, else the path of such a file or of a folder that holds one.

        Raises:
            CheckpointError: no such file, or a value that cannot be sampled with, named.
        """
        if source == DefaultsSource.VLLM:
            return cls()
        folder = model_dir if source == DefaultsSource.AUTO else Path(source)
        path = folder if folder.is_file() else folder / GENERATION_FILE
        if source == DefaultsSource.AUTO and not path.exists():
            return cls()
        return cls.from_json(_read_object(path), where=str(path))

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> Self:
        """Build from a parsed ``generation_config.json``; null counts as left out.

        Raises:
            CheckpointError: a value that cannot be sampled with; ``where`` names the file.
        """
        given = {
            field.name: _number(raw[field.name], field.name, where)
            for field in fields(cls)
            if raw.get(field.name) is not None
        }
        for name in ("top_k", "max_new_tokens"):
            if name in given:
                given[name] = _whole(given[name], name, where)
        if "top_k" in given:  # some files write -1 for "all"
            given["top_k"] = max(given["top_k"], 0)
        sampling = {name: value for name, value in given.items() if name != "max_new_tokens"}
        # A file's values are of any type: both classes judge them.
        try:
            SamplingParams(**sampling, max_tokens=given.get("max_new_tokens", 1))  # type: ignore[arg-type]
        except RequestError as error:
            raise CheckpointError(f"{where}: {error}") from error
        return cls(**given)  # type: ignore[arg-type]

    @property
    def changed(self) -> dict[str, float]:
        """Those that are not neutral."""
        neutral = SamplingDefaults()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(neutral, name)}

    @property
    def notice(self) -> str | None:
        """One line for an operator where requests are not sampled neutrally by default."""
        if not self.changed:
            return None
        told = ", ".join(f"{name}={value:g}" for name, value in self.changed.items())
        return f"sampling defaults of {GENERATION_FILE}: {told} (--generation-config vllm: none)"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds {type(raw).__name__}, not an object")
    return raw


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{where}: {name} is {value!r}, not a number")
    return value


def _whole(value: float, name: str, where: str) -> int:
    if value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise CheckpointError(f"{where}: {name} is {value!r}, not a whole number")
    return int(value)
