"""Text to token ids and back: ``tokenizer.json``, incremental detokenisation, chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.spec.errors import CheckpointError, RequestError
from engine.text.files import DEFAULT_TEMPLATE, read_tokenizer_files

# Used where a checkpoint brings no template: roles as plain words, as base models see them.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character has at most three bytes, each shown as one replacement at most.
MAX_HELD_BACK = 3
# Output that never settles is garbage bytes: the window stops growing here.
MAX_WINDOW_TOKENS = 256
# How vocabularies with byte fallback write a byte that is no character of theirs.
LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DetokenizerStream:
    """Decodes one output token by token, holding back a character that is still incomplete.

    The texts of all ``push`` calls and of a last ``flush`` join to ``Tokenizer.decode`` of all
    ids. Owned by one thread.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._window: list[int] = []
        self._num_context = 0
        self._num_emitted_chars = 0

    def push(self, token_id: int) -> str:
        """Add one id; the newly printable text, "" while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        is_full = len(self._window) >= MAX_WINDOW_TOKENS
        stable = len(text) if is_full else _stable_length(text)
        piece = text[self._num_emitted_chars : stable]
        self._num_emitted_chars = max(stable, self._num_emitted_chars)
        if is_full or (piece and stable == len(text)):
            self._slide()
        return piece

    def flush(self) -> str:
        """The text still held back; call it once, at the end of the output."""
        text = self._decode(self._window)
        piece = text[self._num_emitted_chars :]
        self._num_emitted_chars = len(text)
        return piece

    def _slide(self) -> None:
        """Keep the newest settled tokens as context: some decoders treat a first token apart."""
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._num_emitted_chars = len(self._decode(self._window))


class Tokenizer:
    """A Hugging Face tokenizer: ``tokenizer.json`` plus the chat template beside it.

    Safe to share between threads. Ids the tokenizer does not know (a model's vocabulary may be
    the larger one) decode to nothing.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        # A byte-level vocabulary writes each byte of UTF-8 as one letter.
        self._is_byte_level = "\u00c3" in "".join(
            backend.encode("\u00e9", add_special_tokens=False).tokens
        )
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _chat_environment().from_string(chat_template or PLAIN_TEMPLATE)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"chat template: {error}") from error

    @classmethod
    def from_dir(cls, model_dir: Path | str) -> Tokenizer:
        """Read ``tokenizer.json`` and, where present, the files beside it.

        Raises:
            CheckpointError: a missing or unreadable file, or a template that does not parse.
        """
        files = read_tokenizer_files(Path(model_dir))
        return cls(
            files.backend,
            chat_template=_default_template(files.templates),
            special_tokens=files.special_tokens,
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest_token_chars(self) -> int:
        """Characters of the longest token as the vocabulary writes it, at least one."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens (such as a first BOS) as the file asks for."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``, by default without special tokens; unknown ids add nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> DetokenizerStream:
        """A new incremental decoder for one output."""
        return DetokenizerStream(self, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes one token stands for, maybe a part of a character; b"" if unknown."""
        token = self._added.get(token_id) or self._backend.id_to_token(token_id)
        if token is None or token_id in self._added:
            return (token or "").encode()
        if self._is_byte_level:
            return b"".join(_BYTE_OF_LETTER.get(letter, letter.encode()) for letter in token)
        if lone := LONE_BYTE.fullmatch(token):
            return bytes([int(lone[1], 16)])
        # Some decoders drop the space before a first token: decode it behind another one.
        before = self._backend.encode("a", add_special_tokens=False).ids
        text, start = self.decode([*before, token_id]), self.decode(before)
        return (text[len(start) :] if text.startswith(start) else self.decode([token_id])).encode()

    def is_special(self, token_id: int) -> bool:
        """Whether plain text leaves this token out."""
        return token_id in self._special_ids

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt text of a conversation, ending where the assistant is to speak.

        Raises:
            RequestError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._special_tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"messages: the chat template refuses them ({error})") from error


def _letters_of_bytes() -> dict[str, bytes]:
    """How byte-level vocabularies write bytes: printable ones as themselves, others from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


_BYTE_OF_LETTER = _letters_of_bytes()


def _stable_length(text: str) -> int:
    """Characters of ``text`` that no later token can change."""
    held = len(text) - len(text.rstrip(REPLACEMENT))
    return len(text) - min(held, MAX_HELD_BACK)


def _chat_environment() -> ImmutableSandboxedEnvironment:
    """Templates come from downloaded files: they run sandboxed, without attribute access to us."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now(UTC).strftime(pattern)
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which prompts must not be.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _default_template(templates: Mapping[str, str]) -> str | None:
    return templates.get(DEFAULT_TEMPLATE) or next(iter(templates.values()), None)
