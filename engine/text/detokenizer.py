"""The text of an output: detokenised as it comes, and cut at stop strings, for which some is held
back."""

from __future__ import annotations

from typing import Protocol


class TextStream(Protocol):
    """Incremental detokenisation of one sequence."""

    def push(self, token_id: int) -> str:
        """Text that became printable with this token ("" while a character is incomplete)."""
        ...

    def flush(self) -> str:
        """Text still held back, at the end of the sequence."""
        ...


class StopFinder:
    """Finds stop strings across token borders; text that may begin one is held back.

    A stop string counts where it is completed: with ``counts=False`` none is, but its beginning may
    lie there.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str, *, counts: bool = True) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was completed."""
        if not self._stops:
            return text, False
        known = len(self._held)
        self._held += text
        hits = [at for stop in self._stops if (at := self._find(stop, known)) >= 0]
        if hits and counts:
            shown, self._held = self._held[: min(hits)], ""
            return shown, True
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """Text still held back, when the sequence ends without its stop string."""
        shown, self._held = self._held, ""
        return shown

    def _find(self, stop: str, known: int) -> int:
        """Where ``stop`` begins that does not end in the first ``known`` characters; else -1."""
        return self._held.find(stop, max(0, known + 1 - len(stop)))

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class OutputText:
    """One output's text: detokeniser and stop strings together. Owned by one thread.

    A stop string that is complete with the first ``min_tokens`` tokens is shown as any text.
    """

    def __init__(self, text: TextStream, stops: tuple[str, ...], *, min_tokens: int = 0) -> None:
        self._text = text
        self._stops = StopFinder(stops)
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text to show with this token, and whether it completed a stop string."""
        self._num_tokens += 1
        return self._search(self._text.push(token_id))

    def flush(self) -> tuple[str, bool]:
        """Text held back to the end, and whether it completed a stop string."""
        shown, is_stopped = self._search(self._text.flush())
        return (shown, True) if is_stopped else (shown + self._stops.flush(), False)

    def _search(self, piece: str) -> tuple[str, bool]:
        return self._stops.push(piece, counts=self._num_tokens > self._min_tokens)
