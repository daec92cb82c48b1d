"""Texts and token ids: from one to the other, off the event loop where there is much of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool

from engine.server.chat_schema import ChatMessage
from engine.server.errors import invalid
from engine.server.served import ServedEngine
from engine.text.tokenizer import Tokenizer

T = TypeVar("T")

# Longer work is done on a thread: to tokenise 4,096 characters takes about a millisecond.
LONG_WORK_CHARS = 4096
# What each text of a list costs beside its characters.
TEXT_CHARS = 64
# Characters per token beyond which a text cannot fit the context, whatever its tokens are.
MIN_REFUSED_TOKEN_CHARS = 64
# What ``Tokenizer.chat_text`` takes by name; whatever else a template is told are its variables.
TEMPLATE_ARGUMENTS = ("tools", "documents", "add_generation_prompt")


async def off_loop(num_chars: int, work: Callable[[], T]) -> T:
    """The result of ``work``, done on a thread if it handles many characters."""
    return await run_in_threadpool(work) if num_chars > LONG_WORK_CHARS else work()


class TextCoder:
    """Reads prompts for one engine, and writes ids as text."""

    def __init__(self, engine: ServedEngine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_token_chars = max(tokenizer.longest_token_chars, MIN_REFUSED_TOKEN_CHARS)

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[tuple[int, ...]]:
        """Token ids of each text, computed off the event loop when the texts are long in all.

        Raises:
            ApiError: 400 naming ``param`` for a text with half a surrogate pair, or far beyond the
                context.
        """
        for text in texts:
            self._check_text(text, param)
        encode = partial(self._tokenizer.encode, add_special_tokens=add_special_tokens)
        num_chars = sum(len(text) + TEXT_CHARS for text in texts)
        return await off_loop(num_chars, lambda: [tuple(encode(text)) for text in texts])

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        values: Mapping[str, Any],
        *,
        add_special_tokens: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of a conversation as the chat template words it, which is told ``values`` too.

        Raises as ``encode``.
        """
        num_chars = sum(message.num_chars + TEXT_CHARS for message in messages) + len(str(values))
        named = {name: values[name] for name in TEMPLATE_ARGUMENTS if name in values}
        variables = {name: value for name, value in values.items() if name not in named}
        text = await off_loop(
            num_chars,
            lambda: self._tokenizer.chat_text(
                [message.for_template() for message in messages], variables=variables, **named
            ),
        )
        (ids,) = await self.encode([text], add_special_tokens=add_special_tokens, param="messages")
        return ids

    async def decode(
        self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True
    ) -> list[str]:
        """The text of each list of ids."""
        decode = partial(self._tokenizer.decode, skip_special_tokens=skip_special_tokens)
        num_ids = sum(len(found) + TEXT_CHARS for found in ids)
        return await off_loop(num_ids, lambda: [decode(found) for found in ids])

    def _check_text(self, text: str, param: str) -> None:
        limit = self._engine.max_model_len * self._max_token_chars
        if len(text) > limit:
            raise invalid(
                f"{param}: {len(text)} characters cannot fit a context of "
                f"{self._engine.max_model_len} tokens",
                param=param,
                code="context_length_exceeded",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise invalid(
                f"{param}: half a surrogate pair at character {error.start}", param=param
            ) from error
