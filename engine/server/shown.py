"""The text of a choice that asked to see more of it than engines hand out."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from engine.spec.request import FinishReason, RequestOutput
from engine.text.detokenizer import StopFinder, TextStream


@dataclass(frozen=True, kw_only=True)
class TextWish:
    """What a choice shows beside its plain text: special tokens, and what it ended with."""

    shows_special: bool = False
    shows_stop: bool = False

    def __bool__(self) -> bool:
        return self.shows_special or self.shows_stop


class ShownText:
    """Makes the text of one choice from its token ids, under a wish of its caller.

    What the engine ended the choice with, a stop string or an ``end_ids`` token, is found here
    again, to show it or not. If special tokens are shown, they may complete a stop string that the
    engine does not see. Then ``is_stopped`` is set, no more text comes, and ``num_used`` is how
    many tokens of the last output belong to the choice. A stop string that is complete with the
    first ``min_tokens`` tokens does not count.
    """

    def __init__(
        self,
        text: TextStream,
        stops: tuple[str, ...],
        end_ids: Container[int],
        wish: TextWish,
        *,
        min_tokens: int = 0,
    ) -> None:
        self._text = text
        self._stops = stops
        self._finder = StopFinder(stops)
        self._end_ids = end_ids
        self._wish = wish
        self._decoded = ""
        self._num_shown = 0
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.num_used = 0
        self.is_stopped = False

    def of(self, output: RequestOutput) -> str:
        """The text to show with ``output``, which is the next one of this choice."""
        ids = output.token_ids
        is_hidden = self._ended_by_id(output) and not self._wish.shows_stop
        pieces: list[str] = []
        self.num_used = 0
        for token_id in ids[:-1] if is_hidden else ids:
            if self.is_stopped:
                return "".join(pieces)
            self._num_tokens += 1
            self.num_used += 1
            pieces.append(self._push(self._text.push(token_id)))
        if is_hidden and not self.is_stopped:
            self.num_used = len(ids)
        if output.is_finished:
            pieces.append(self._push(self._text.flush()))
            if not self.is_stopped:
                pieces.append(self._finder.flush())
        return "".join(pieces)

    def _ended_by_id(self, output: RequestOutput) -> bool:
        ids = output.token_ids
        return output.finish_reason is FinishReason.STOP and bool(ids) and ids[-1] in self._end_ids

    def _push(self, piece: str) -> str:
        if self.is_stopped:
            return ""
        self._decoded += piece
        counts = self._num_tokens > self._min_tokens
        shown, self.is_stopped = self._finder.push(piece, counts=counts)
        self._num_shown += len(shown)
        if self.is_stopped and self._wish.shows_stop:
            starts = self._decoded.startswith
            shown += next(stop for stop in self._stops if starts(stop, self._num_shown))
        return shown
