"""What a user says of a serving system in one word: its name, its release, settings changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuner.spec.errors import TunerError

MAX_CHARS = 1000
_RELEASE = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """``NAME[@RELEASE][,KEY=VALUE...]``, as in ``vllm@0.12,async_scheduling=on``.

    ``release`` None: the newest whose defaults are known. ``settings`` are texts by key, as
    :data:`tuner.backends.settings.SETTINGS` has them.
    """

    name: str
    release: str | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> BackendChoice:
        """Read a choice; whether there is such a system is not looked at.

        Raises:
            TunerError: a release that is none, or a setting without a value or named twice.
        """
        if len(text) > MAX_CHARS:
            raise TunerError(
                f"backend {text[:40]!r}...: {len(text)} characters; at most {MAX_CHARS}"
            )
        head, *words = (word.strip() for word in text.split(","))
        name, has_release, release = head.partition("@")
        if has_release and not _RELEASE.fullmatch(release):
            raise TunerError(f"backend {text!r}: release {release!r} is none; write {name}@0.12")
        settings: dict[str, str] = {}
        for word in words:
            key, has_value, value = (piece.strip() for piece in word.partition("="))
            if not (key and has_value and value):
                raise TunerError(f"backend {text!r}: {word!r} is no setting; write key=value")
            if key in settings:
                raise TunerError(f"backend {text!r}: {key}= stands twice")
            settings[key] = value
        return cls(name=name, release=release or None, settings=tuple(settings.items()))

    def __str__(self) -> str:
        head = self.name if self.release is None else f"{self.name}@{self.release}"
        return ",".join([head, *(f"{key}={value}" for key, value in self.settings)])


def release_key(text: str) -> tuple[int, ...]:
    """A release to compare by; zeros at its end do not count."""
    numbers = [int(part) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
