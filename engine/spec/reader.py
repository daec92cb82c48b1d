"""Values of a JSON object by key; one of the wrong kind is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.spec.errors import CheckpointError

MAX_INTEGER = 2**31 - 1
# What a message shows of a value that is wrong.
MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class ConfigReader:
    """The object ``raw`` of the file ``where``. A key that is null counts as one left out.

    Raises (every method):
        CheckpointError: a value of another kind or out of bounds, or one that is missing and has
            no default.
    """

    raw: Mapping[str, Any]
    where: str

    def find(self, key: str) -> Any:
        """Whatever stands under ``key``, None where nothing does."""
        return self.raw.get(key)

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        maximum: int = MAX_INTEGER,
    ) -> int:
        """A whole number from 1 to ``maximum``."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not 1 <= value <= maximum:
            raise self._wrong(key, value, f"from 1 to {maximum}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -math.inf) -> float:
        """A finite number larger than ``above``."""
        found = self._number(key, self._value(key, default))
        if found <= above:
            raise self._wrong(key, found, f"above {above:g}")
        return found

    def numbers(self, key: str, *, count: int) -> tuple[float, ...]:
        """A list of ``count`` numbers above a millionth."""
        value = self._value(key, None)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(key, value, f"a list of {count} numbers")
        found = tuple(self._number(key, item) for item in value)
        if min(found, default=1.0) <= 1e-6:
            raise self._wrong(key, value, "a list of numbers above a millionth")
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def word(self, key: str, default: str) -> str:
        """A text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a word")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids; none where the key is left out."""
        value = self.find(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise self._wrong(key, value, "the id of a token or a list of them")
        return tuple(ids)

    def object(self, key: str) -> ConfigReader | None:
        """The object under ``key``; None where it is left out or empty."""
        value = self.find(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return ConfigReader(raw=value, where=f"{self.where}: {key}") if value else None

    def _value(self, key: str, default: Any) -> Any:
        value = self.find(key)
        if value is None:
            value = default
        if value is None:
            what = "null" if key in self.raw else "missing"
            raise CheckpointError(f"{self.where}: key {key!r} is {what}")
        return value

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self._wrong(key, found, "finite")
        return found

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        shown = json.dumps(value)
        if len(shown) > MAX_SHOWN_CHARS:
            shown = f"{shown[:MAX_SHOWN_CHARS]}..."
        return CheckpointError(f"{self.where}: {key} {shown} is not {wanted}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: there is no such file, or it is no JSON object.
    """
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(_why_not_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds {type(parsed).__name__}, not an object")
    return parsed


def _why_not_read(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() if not path.parent.is_dir():
            return f"{path.parent}: no such folder; a model is a folder with a {path.name}"
        case FileNotFoundError():
            return f"{path}: no such file; a model folder has a {path.name}"
        case NotADirectoryError():
            return f"{path.parent}: not a folder; a model is a folder with a {path.name}"
        case _:
            return f"{path}: cannot be read ({error.strerror})"
