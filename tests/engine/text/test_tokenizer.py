"""Tokenizer: round trips, incremental text, chat templates, broken folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.models.corpus import train_tokenizer
from engine.spec.errors import CheckpointError, RequestError
from engine.text.tokenizer import Tokenizer

BACKEND = train_tokenizer(512)
TOKENIZER = Tokenizer(BACKEND)


def _with_byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral 7B have it: characters that are no tokens are written in bytes."""
    words = ["<unk>", "\u2581", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


WITH_BYTE_FALLBACK = _with_byte_fallback()


@given(st.text())
def test_every_text_comes_back_from_its_ids(text: str) -> None:
    # Special tokens written out in a text become special tokens, and those are not shown.
    ids = TOKENIZER.encode(text.replace("<|", ""))
    assert TOKENIZER.decode(ids) == text.replace("<|", "")


@given(st.lists(st.integers(min_value=0, max_value=600), max_size=300))
def test_streamed_pieces_join_to_the_whole_decoded_text(ids: list[int]) -> None:
    stream = TOKENIZER.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(ids)


def test_half_a_character_is_held_back_until_the_other_half_arrives() -> None:
    ids = TOKENIZER.encode("\u65e5", add_special_tokens=False)
    assert len(ids) == 3
    stream = TOKENIZER.stream()
    assert [stream.push(token_id) for token_id in ids] == ["", "", "\u65e5"]
    assert stream.flush() == ""


def test_endless_garbage_bytes_are_not_held_back_for_ever() -> None:
    garbage = TOKENIZER.encode("\u65e5", add_special_tokens=False)[0]
    stream = TOKENIZER.stream()
    pieces = [stream.push(garbage) for _ in range(1000)]
    assert len("".join(pieces)) > 990


def test_ids_beyond_the_vocabulary_decode_to_nothing() -> None:
    hello = TOKENIZER.encode("hello")
    assert TOKENIZER.decode([*hello, TOKENIZER.vocab_size, 128_255]) == "hello"


@given(st.text())
def test_bytes_of_single_tokens_join_to_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert b"".join(TOKENIZER.token_bytes(i) for i in ids).decode() == text


def test_a_vocabulary_with_byte_fallback_gives_bytes_and_spaces_too() -> None:
    ids = WITH_BYTE_FALLBACK.encode("a b\u65e5")
    assert WITH_BYTE_FALLBACK.decode(ids) == "a b\u65e5"
    assert b"".join(WITH_BYTE_FALLBACK.token_bytes(i) for i in ids).decode() == " a b\u65e5"
    assert WITH_BYTE_FALLBACK.token_bytes(99_999) == b""


def test_characters_in_bytes_one_after_the_other_come_whole() -> None:
    ids = WITH_BYTE_FALLBACK.encode("a\u65e5\U0001f600\u65e5 b", add_special_tokens=False)
    stream = WITH_BYTE_FALLBACK.stream()
    pieces = [piece for token_id in ids if (piece := stream.push(token_id))]
    assert [*pieces, stream.flush()] == ["a", "\u65e5", "\U0001f600", "\u65e5", " ", "b", ""]


@given(st.text(alphabet=st.one_of(st.sampled_from("ab \n"), st.characters(codec="utf-8"))))
def test_every_text_in_bytes_streams_as_it_is_decoded(text: str) -> None:
    ids = WITH_BYTE_FALLBACK.encode(text, add_special_tokens=False)
    stream = WITH_BYTE_FALLBACK.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == WITH_BYTE_FALLBACK.decode(ids)


@given(st.text("ab \u65e5", min_size=2), st.data())
def test_an_output_is_what_its_text_adds_to_that_of_its_prompt(
    text: str, data: st.DataObject
) -> None:
    ids = WITH_BYTE_FALLBACK.encode(f"a{text}", add_special_tokens=False)
    ends = [n for n in range(2, len(ids)) if not WITH_BYTE_FALLBACK.is_lone_byte(ids[n])]
    prompt_len = data.draw(st.sampled_from([*ends, len(ids)]))
    prompt, output = ids[:prompt_len], ids[prompt_len:]
    stream = WITH_BYTE_FALLBACK.stream(after=prompt)
    pieces = [stream.push(token_id) for token_id in output]
    shown = "".join(pieces) + stream.flush()
    assert WITH_BYTE_FALLBACK.decode(prompt) + shown == f"a{text}"


def test_a_word_behind_a_prompt_keeps_the_space_before_it() -> None:
    prompt = WITH_BYTE_FALLBACK.encode("a")
    output = WITH_BYTE_FALLBACK.encode("b")
    assert WITH_BYTE_FALLBACK.decode(output) == "b"
    for after, shown in ((prompt, " b"), ((), "b"), ((99_999,), "b")):
        stream = WITH_BYTE_FALLBACK.stream(after=after)
        assert "".join([stream.push(i) for i in output]) + stream.flush() == shown


def test_behind_a_token_that_is_not_shown_an_output_begins_a_text() -> None:
    role = TOKENIZER.encode("<|role|>", add_special_tokens=False)
    hello = TOKENIZER.encode("hello", add_special_tokens=False)
    for shows in (True, False):
        stream = TOKENIZER.stream(after=role, skip_special_tokens=not shows)
        assert "".join([stream.push(i) for i in hello]) == "hello"


def test_a_byte_that_is_no_character_leaves_those_before_it_as_they_were_shown() -> None:
    _, *three = WITH_BYTE_FALLBACK.encode("\u65e5", add_special_tokens=False)
    stream = WITH_BYTE_FALLBACK.stream()
    pieces = [stream.push(token_id) for token_id in (*three, three[-1], three[0])]
    assert "".join(pieces) + stream.flush() == "\u65e5\ufffd\ufffd"


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = TOKENIZER.encode("<|role|>hello", add_special_tokens=False)
    assert TOKENIZER.decode(ids) == "hello"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<|role|>hello"
    stream = TOKENIZER.stream(skip_special_tokens=False)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == "<|role|>hello"
    assert [TOKENIZER.is_special(i) for i in ids] == [True] + [False] * (len(ids) - 1)


def test_without_a_template_roles_are_plain_words() -> None:
    text = TOKENIZER.chat_text([{"role": "user", "content": "Hi"}])
    assert text == "user: Hi\nassistant:"


def test_a_template_file_goes_before_the_one_in_the_config(tmp_path: Path) -> None:
    BACKEND.save(str(tmp_path / "tokenizer.json"))
    config = {"chat_template": "config", "bos_token": {"content": "<|begin|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_dir(tmp_path).chat_text([]) == "config"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}file")
    assert Tokenizer.from_dir(tmp_path).chat_text([]) == "<|begin|>file"


def test_a_template_may_refuse_messages() -> None:
    tokenizer = Tokenizer(BACKEND, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        tokenizer.chat_text([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_a_hostile_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(RequestError):
        Tokenizer(BACKEND, chat_template=attack).chat_text([])


def test_a_template_that_does_not_parse_is_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        Tokenizer(BACKEND, chat_template="{% for %}")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.from_dir(tmp_path)


def test_an_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.from_dir(tmp_path)
