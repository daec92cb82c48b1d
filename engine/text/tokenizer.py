"""Text to token ids and back: ``tokenizer.json``, incremental detokenisation, chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tokenizers

from engine.text.files import read_tokenizer_files
from engine.text.templates import DEFAULT, ChatTemplates

REPLACEMENT = "\ufffd"
# An unfinished UTF-8 character has at most three bytes, each shown as one replacement at most.
MAX_HELD_BACK = 3
# Output that never settles is garbage bytes: the window stops growing here.
MAX_WINDOW_TOKENS = 256


class DetokenizerStream:
    """Decodes one output token by token, holding back a character that is still incomplete.

    The texts of all ``push`` calls and of a last ``flush`` join to ``Tokenizer.decode`` of all
    ids, behind text where ``goes_on``. (Where bytes follow each other of which some are no
    character, that has none of them; here those that were shown before stay.) Owned by one thread.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, goes_on: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._window: list[int] = list(tokenizer.plain_context) if goes_on else []
        self._num_context = len(self._window)
        self._num_emitted_chars = len(self._decode(self._window))

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
        """Keep the newest settled tokens as context: some decoders treat a first token apart.

        Bytes are no context for what follows. Byte fallback reads those that stand together as
        one text, and while the last character is incomplete the settled ones are gone as well.
        """
        self._window = self._window[self._num_context :]
        if self._tokenizer.is_lone_byte(self._window[-1]):
            self._window = list(self._tokenizer.plain_context)
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
        chat_template: str | Mapping[str, str] | None = None,
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
        self._lone_bytes = frozenset() if self._is_byte_level else _lone_bytes(backend)
        named = {DEFAULT: chat_template} if isinstance(chat_template, str) else chat_template
        self._templates = ChatTemplates(named or {}, special_tokens or {})

    @classmethod
    def from_dir(cls, model_dir: Path | str) -> Tokenizer:
        """Read ``tokenizer.json`` and, where present, the files beside it.

        Raises:
            CheckpointError: a missing or unreadable file, or a template that does not parse.
        """
        files = read_tokenizer_files(Path(model_dir))
        return cls(
            files.backend,
            chat_template=files.templates,
            special_tokens=files.special_tokens,
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def plain_context(self) -> tuple[int, ...]:
        """Ids of ordinary text, to decode others behind: decoders may drop the space before a
        first token. Empty where the vocabulary writes even a letter in bytes.
        """
        ids = self._backend.encode("a", add_special_tokens=False).ids
        return tuple(token_id for token_id in ids if not self.is_lone_byte(token_id))

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

    def stream(
        self, *, after: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> DetokenizerStream:
        """A new incremental decoder for one output, which goes on with the text of ``after``.

        A word is written with the space before it by vocabularies as Llama 2's, and whoever decodes
        it alone loses that space.
        """
        return DetokenizerStream(
            self,
            skip_special_tokens=skip_special_tokens,
            goes_on=len(after) > 0 and self._is_text(after[-1], not skip_special_tokens),
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes one token stands for, maybe a part of a character; b"" if unknown."""
        token = self._added.get(token_id) or self._backend.id_to_token(token_id)
        if token is None or token_id in self._added:
            return (token or "").encode()
        if self._is_byte_level:
            return b"".join(_BYTE_OF_LETTER.get(letter, letter.encode()) for letter in token)
        if token_id in self._lone_bytes:
            return bytes([int(token[3:5], 16)])
        before = self.plain_context
        text, start = self.decode([*before, token_id]), self.decode(before)
        return (text[len(start) :] if text.startswith(start) else self.decode([token_id])).encode()

    def is_lone_byte(self, token_id: int) -> bool:
        """Whether the token stands for a byte that is no character of the vocabulary's."""
        return token_id in self._lone_bytes

    def is_special(self, token_id: int) -> bool:
        """Whether plain text leaves this token out."""
        return token_id in self._special_ids

    def find_special(self, text: str) -> int | None:
        """The special token that is written ``text``, which no plain text shows; None if there is
        none."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self._special_ids else None

    def _is_text(self, token_id: int, shows_special: bool) -> bool:
        """Whether a token is part of a text, which shows special ones or not."""
        if self.is_special(token_id):
            return shows_special
        return self._backend.id_to_token(token_id) is not None

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text of a conversation, by default ending where the assistant is to speak.

        ``variables`` are what else the template is told, such as ``enable_thinking``; see
        :meth:`engine.text.templates.ChatTemplates.render`.

        Raises:
            RequestError: the template refuses these messages.
        """
        return self._templates.render(
            messages,
            tools=tools,
            documents=documents,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
        )


def _lone_bytes(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of the tokens ``<0x00>`` to ``<0xFF>``, those that are there."""
    names = (f"<0x{byte:{form}}>" for byte in range(256) for form in ("02X", "02x"))
    return frozenset(i for name in names if (i := backend.token_to_id(name)) is not None)


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
