"""Bodies that are wrong: what is told of them is bounded, whatever their size."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engine.server.chat_schema import ChatBody
from engine.server.schema import CompletionBody
from engine.server.tokens import DetokenizeBody, TokenizeBody

MANY = 20_000
BASE = {"model": "tiny", "prompt": "x"}
SAID = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionBody, {"model": "tiny", "prompt": [1] * MANY + ["x"]}),
        (CompletionBody, {"model": "tiny", "prompt": ["x"] * MANY + [1]}),
        (CompletionBody, {"model": "tiny", "prompt": [[1] * 9] * MANY + [[-1] * MANY]}),
        (CompletionBody, {**BASE, "logit_bias": {f"x{n}": "y" for n in range(MANY)}}),
        (CompletionBody, {**BASE, "stop": [5] * MANY}),
        (CompletionBody, {**BASE, "stop_token_ids": ["x"] * MANY}),
        (
            CompletionBody,
            {**BASE, "stream": True, "stream_options": {f"x{n}": n for n in range(MANY)}},
        ),
        (ChatBody, {"model": "tiny", "messages": [5] * MANY}),
        (ChatBody, {"model": "tiny", "messages": [{"role": "user", "content": [5] * MANY}]}),
        (ChatBody, {"model": "tiny", "messages": [SAID], "tools": [5] * MANY}),
        (ChatBody, {"model": "tiny", "messages": [SAID], "documents": [5] * MANY}),
        (TokenizeBody, {"prompt": "x", **{f"x{n}": n for n in range(MANY)}}),
        (DetokenizeBody, {"tokens": ["x"] * MANY}),
        (DetokenizeBody, {"tokens": [1], **{f"x{n}": n for n in range(MANY)}}),
    ],
)
def test_a_body_of_which_all_is_wrong_is_told_of_in_a_few_words(
    kind: type[BaseModel], body: dict[str, Any]
) -> None:
    """Of each item that was wrong an object was made, a kilobyte for two bytes that came."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() <= 10
