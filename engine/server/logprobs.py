"""Log probabilities in the words of OpenAI's two endpoints."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.spec.request import TokenLogprobs
from engine.text.tokenizer import Tokenizer

# JSON has no minus infinity; this is what OpenAI's own answers hold for it.
LOWEST_LOGPROB = -9999.0
MAX_KEPT_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class WordedToken:
    """One token with its log probability; ``text`` is ``bytes:\\x..`` where it is no whole text."""

    token_id: int
    text: str
    utf8: bytes
    logprob: float

    def to_chat(self) -> dict[str, Any]:
        return {"token": self.text, "logprob": self.logprob, "bytes": list(self.utf8)}


@dataclass(frozen=True, kw_only=True)
class WordedPosition:
    """One output position: its token, the best ones, and where its text starts in the choice."""

    chosen: WordedToken
    top: tuple[WordedToken, ...]
    text_offset: int


class LogprobWriter:
    """Words the log probabilities of one choice, in order of its tokens.

    Offsets count characters of the text that the tokens stand for; special tokens count only if
    ``shows_special``.
    """

    def __init__(self, words: TokenWords, *, shows_special: bool) -> None:
        self._words = words
        self._offset = 0
        self._shows_special = shows_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def word(self, positions: Iterable[TokenLogprobs]) -> list[WordedPosition]:
        """The next positions of this choice."""
        return [self._position(position) for position in positions]

    def _position(self, position: TokenLogprobs) -> WordedPosition:
        chosen = self._words.token(position.token_id, position.logprob)
        worded = WordedPosition(
            chosen=chosen,
            top=tuple(self._words.token(*best) for best in position.top),
            text_offset=self._offset,
        )
        if self._shows_special or not self._words.is_special(position.token_id):
            self._offset += len(self._decoder.decode(chosen.utf8))
        return worded


class TokenWords:
    """Texts of single tokens. Keeps those asked for lately."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.is_special = tokenizer.is_special
        self._text_of: Callable[[int], tuple[str, bytes]] = lru_cache(maxsize=MAX_KEPT_TOKENS)(
            lambda token_id: _text_of(tokenizer.token_bytes(token_id))
        )

    def token(self, token_id: int, logprob: float) -> WordedToken:
        """The token as answers show it."""
        text, utf8 = self._text_of(token_id)
        finite = logprob if math.isfinite(logprob) else LOWEST_LOGPROB
        return WordedToken(token_id=token_id, text=text, utf8=utf8, logprob=finite)


def completion_logprobs(positions: Sequence[WordedPosition]) -> dict[str, Any]:
    """``/v1/completions``: parallel arrays; the chosen token is always among the top ones."""
    return {
        "tokens": [position.chosen.text for position in positions],
        "token_logprobs": [position.chosen.logprob for position in positions],
        "top_logprobs": [_by_text(position) for position in positions],
        "text_offset": [position.text_offset for position in positions],
    }


def chat_logprobs(positions: Sequence[WordedPosition]) -> dict[str, Any]:
    """``/v1/chat/completions``: one object per token."""
    content = [
        {**position.chosen.to_chat(), "top_logprobs": [token.to_chat() for token in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def _by_text(position: WordedPosition) -> dict[str, float]:
    """Each token of a position once, under its text, best first.

    Several ids may have one text. It belongs to the chosen token, else to the best; the others
    are ``token_id:ID``. So the largest value stands under the chosen text only if that was best.
    """
    chosen = position.chosen
    found: dict[str, float] = {}
    for token in position.top:
        is_taken = token.text in found or token.text == chosen.text
        is_other = is_taken and token.token_id != chosen.token_id
        found[f"token_id:{token.token_id}" if is_other else token.text] = token.logprob
    return found | {chosen.text: chosen.logprob}


def _text_of(utf8: bytes) -> tuple[str, bytes]:
    try:
        return utf8.decode(), utf8
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in utf8), utf8
