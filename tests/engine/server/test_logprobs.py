"""Log probabilities in the words of both endpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.server.logprobs import (
    LogprobWriter,
    TokenWords,
    chat_logprobs,
    completion_logprobs,
)
from engine.spec.request import TokenLogprobs
from engine.text.tokenizer import Tokenizer


def _positions(ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(token_id=i, logprob=-0.5, rank=1, top=((i, -0.5),)) for i in ids]


def _checked_offsets(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Offsets of the tokens, each of which stands there in the text."""
    writer = LogprobWriter(TokenWords(tokenizer), num_best=5, shows_special=False)
    found = completion_logprobs(writer.word(_positions(ids)))
    shown = tokenizer.decode(ids)
    for token_id, token, offset in zip(ids, found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:") and not tokenizer.is_special(token_id):
            assert shown[offset : offset + len(token)] == token
    offsets: list[int] = found["text_offset"]
    return offsets


@given(text=st.text(max_size=30))
def test_offsets_point_at_each_token_in_the_text(tiny_dir: Path, text: str) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    ids = tokenizer.encode(text)
    _checked_offsets(tokenizer, ids)


@given(ids=st.lists(st.integers(0, 514), max_size=16))
def test_offsets_count_what_is_shown_for_a_character_that_breaks_off(
    tiny_dir: Path, ids: list[int]
) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    writer = LogprobWriter(TokenWords(tokenizer), num_best=5, shows_special=False)
    offsets = _checked_offsets(tokenizer, ids)
    if ids:
        told = writer.word_prompt(tokenizer.decode(ids), ids[0], _positions(ids[1:]))
        for position, offset in zip(told, offsets, strict=True):
            if not tokenizer.is_special(position.chosen.token_id):
                assert position.text_offset == offset


def test_a_part_of_a_character_is_shown_as_its_bytes(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    ids = tokenizer.encode("\u4e2d", add_special_tokens=False)
    assert len(ids) > 1, "the tiny vocabulary has no such character"
    writer = LogprobWriter(TokenWords(tokenizer), num_best=5, shows_special=False)
    content = chat_logprobs(writer.word(_positions(ids)))["content"]
    assert all(token["token"].startswith("bytes:\\x") for token in content)
    assert bytes(byte for token in content for byte in token["bytes"]) == "\u4e2d".encode()


def test_the_space_that_a_vocabulary_writes_before_a_first_word_is_not_counted() -> None:
    words = ["<unk>", "\u2581", "\u2581One", "\u2581two", "!"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(dict(zip(words, range(len(words)), strict=True)), "<unk>")
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    tokenizer = Tokenizer(backend)
    writer = LogprobWriter(TokenWords(tokenizer), num_best=1, shows_special=False)
    worded = writer.word_prompt("One two!", 2, _positions([3, 4]))
    assert [position.text_offset for position in worded] == [0, 3, 7]
    assert [position.text_offset for position in writer.word(_positions([3]))] == [8]


def test_a_token_that_cannot_come_has_a_number_all_the_same(tiny_dir: Path) -> None:
    writer = LogprobWriter(
        TokenWords(Tokenizer.from_dir(tiny_dir)), num_best=5, shows_special=False
    )
    impossible = TokenLogprobs(token_id=5, logprob=-math.inf, rank=9, top=((6, -0.1),))
    found = completion_logprobs(writer.word([impossible]))
    assert found["token_logprobs"] == [-9999.0]
    assert len(found["top_logprobs"][0]) == 2, "the chosen token stands among the best"
    json.dumps(found, allow_nan=False)


def test_tokens_of_one_text_keep_their_own_values(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    first, second, third = (tokenizer.vocab_size + more for more in range(3))
    assert tokenizer.token_bytes(first) == tokenizer.token_bytes(second) == b""
    writer = LogprobWriter(TokenWords(tokenizer), num_best=5, shows_special=False)
    best = ((first, -0.1), (second, -2.0))
    greedy, sampled, rare = (
        TokenLogprobs(token_id=i, logprob=logprob, rank=rank, top=best)
        for i, logprob, rank in ((first, -0.1, 1), (second, -2.0, 2), (third, -9.0, 3))
    )
    told = completion_logprobs(writer.word([greedy, sampled, rare]))["top_logprobs"]
    assert told == [
        {"": -0.1, f"token_id:{second}": -2.0},
        {f"token_id:{first}": -0.1, "": -2.0},
        {f"token_id:{first}": -0.1, f"token_id:{second}": -2.0, "": -9.0},
    ]
