"""A wrong name, and the right one that its writer most likely meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# A longer word is no slip of the keyboard, and comparing it would take long.
MAX_WORD_CHARS = 100


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` is most like, upper or lower case; None if none is."""
    by_lower = {name.lower(): str(name) for name in known}
    if not 0 < len(word) <= MAX_WORD_CHARS:
        return None
    found = get_close_matches(word.lower(), by_lower, n=1)
    # In a short word, two swapped letters would count too much.
    letters = sorted(word.lower())
    found += [name for name in by_lower if sorted(name) == letters]
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'h200'?)``, to follow the wrong word in a message; empty where nothing is
    near."""
    nearest = find_nearest(word, known)
    return "" if nearest is None else f" (did you mean {nearest!r}?)"
