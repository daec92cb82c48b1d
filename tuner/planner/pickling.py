"""A function on its way to another process, which makes it once for all of its tasks.

It is pickled, as is everything that process pools and Ray send: what is read comes from the process
that started, or joined, the reader, never from outside.
"""

from __future__ import annotations

import pickle  # nosec B403
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def pack(answer: Callable[[Any], Any]) -> bytes:
    """A function that is importable by name, or a partial of one."""
    return pickle.dumps(answer)


def answer_packed(packed: bytes, task: Any) -> Any:
    """In the other process: the answer of the packed function."""
    return _unpacked(packed)(task)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = pickle.loads(packed)  # noqa: S301  # nosec B301
    return found
