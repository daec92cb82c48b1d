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
    """One token with its log probability; ``text`` is ``bytes:\\x..`` where it is no whole text.

    The first token of a prompt has none, because nothing stands before it to predict it.
    """

    token_id: int
    text: str
    utf8: bytes
    logprob: float | None

    def to_chat(self) -> dict[str, Any]:
        return {"token": self.text, "logprob": self.logprob, "bytes": list(self.utf8)}


@dataclass(frozen=True, kw_only=True)
class WordedPosition:
    """One position: its token, the best ones, and where its text starts in that of the choice."""

    chosen: WordedToken
    top: tuple[WordedToken, ...]
    text_offset: int


class LogprobWriter:
    """Words the log probabilities of one choice, in order of its tokens, ``num_best`` at each.

    Offsets count characters of the choice's text, from the beginning of what goes before the
    output (``echo``); special tokens of the output count only if ``shows_special``.
    """

    def __init__(self, words: TokenWords, *, num_best: int, shows_special: bool) -> None:
        self._words = words
        self._num_best = num_best
        self._offset = 0
        self._shows_special = shows_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def word_prompt(
        self, text: str, first_id: int, positions: Iterable[TokenLogprobs]
    ) -> list[WordedPosition]:
        """All positions of the prompt, shown as ``text``; ``positions`` from its second token on.

        The text as it was sent has special tokens where its writer put them, and none of those that
        the tokenizer adds.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        first = WordedPosition(chosen=self._words.token(first_id, None), top=(), text_offset=0)
        worded, end = [first], 0
        for position in positions:
            last = worded[-1].chosen
            if text.startswith(last.text, end) or not self._words.is_special(last.token_id):
                shown = decoder.decode(last.utf8)
                # Some vocabularies write a space before a text's first word.
                is_added = shown.startswith(" ") and not text.startswith(" ", end)
                end = min(end + len(shown) - is_added, len(text))
            broken = _num_broken(decoder, self._words.token(position.token_id, None).utf8)
            worded.append(self._position(position, min(end + broken, len(text))))
        self._offset = len(text)
        return worded

    def word(self, positions: Iterable[TokenLogprobs]) -> list[WordedPosition]:
        """The next positions of the output."""
        worded = []
        for position in positions:
            utf8 = self._words.token(position.token_id, None).utf8
            is_shown = self._shows_special or not self._words.is_special(position.token_id)
            broken = _num_broken(self._decoder, utf8) if is_shown else 0
            worded.append(self._position(position, self._offset + broken))
            if is_shown:
                self._offset += len(self._decoder.decode(utf8))
        return worded

    def _position(self, position: TokenLogprobs, text_offset: int) -> WordedPosition:
        return WordedPosition(
            chosen=self._words.token(position.token_id, position.logprob),
            top=tuple(self._words.token(*best) for best in position.top[: self._num_best]),
            text_offset=text_offset,
        )


class TokenWords:
    """Texts of single tokens. Keeps those asked for lately."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.is_special = tokenizer.is_special
        self._text_of: Callable[[int], tuple[str, bytes]] = lru_cache(maxsize=MAX_KEPT_TOKENS)(
            lambda token_id: _text_of(tokenizer.token_bytes(token_id))
        )

    def token(self, token_id: int, logprob: float | None) -> WordedToken:
        """The token as answers show it."""
        text, utf8 = self._text_of(token_id)
        finite = logprob if logprob is None or math.isfinite(logprob) else LOWEST_LOGPROB
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


def prompt_logprobs(
    words: TokenWords, num_best: int, positions: Iterable[TokenLogprobs]
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's ``prompt_logprobs``: null, then of each position its token and the best by id."""
    return [None, *(_by_id(words, num_best, position) for position in positions)]


def _by_id(words: TokenWords, num_best: int, position: TokenLogprobs) -> dict[str, dict[str, Any]]:
    ranked = [(position.rank, position.token_id, position.logprob)]
    ranked += [(nth, *best) for nth, best in enumerate(position.top[:num_best], start=1)]
    told = ((rank, words.token(token_id, logprob)) for rank, token_id, logprob in ranked)
    return {
        str(token.token_id): {
            "logprob": token.logprob,
            "rank": rank,
            "decoded_token": token.text,
        }
        for rank, token in told
    }


def _by_text(position: WordedPosition) -> dict[str, float] | None:
    """Each token of a position once, under its text, best first.

    Several ids may have one text. It belongs to the chosen token, else to the best; the others are
    ``token_id:ID``. So the largest value stands under the chosen text only if that token was best.
    """
    chosen = position.chosen
    if chosen.logprob is None:
        return None
    found: dict[str, float] = {}
    for token in position.top:
        is_taken = token.text in found or token.text == chosen.text
        is_other = is_taken and token.token_id != chosen.token_id
        assert token.logprob is not None, "only the first token of a prompt has none"
        found[f"token_id:{token.token_id}" if is_other else token.text] = token.logprob
    return found | {chosen.text: chosen.logprob}


def _num_broken(decoder: codecs.IncrementalDecoder, utf8: bytes) -> int:
    """Characters that are shown for a begun one which ``utf8`` does not go on with."""
    begun, _ = decoder.getstate()
    goes_on = not utf8 or utf8[0] & 0xC0 == 0x80
    return 0 if goes_on else len(begun.decode(errors="replace"))


def _text_of(utf8: bytes) -> tuple[str, bytes]:
    try:
        return utf8.decode(), utf8
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in utf8), utf8
