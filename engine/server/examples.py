"""Requests that the description shows; the model in them is the one that is served."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.openapi.models import Example

HELLO = {"role": "user", "content": "Say hello."}


def examples(bodies: Mapping[str, dict[str, object]]) -> dict[str, Example]:
    """Named bodies as a route takes them."""
    return {name: Example(value={"model": "", **body}) for name, body in bodies.items()}


COMPLETIONS = examples(
    {
        "text": {"prompt": "The quick", "max_tokens": 8, "temperature": 0},
        "stream": {"prompt": "The quick", "max_tokens": 8, "stream": True},
        "ids": {"prompt": [297, 224, 84], "max_tokens": 8, "logprobs": 2},
    }
)
CHATS = examples(
    {
        "answer": {"messages": [HELLO], "max_tokens": 8},
        "stream": {
            "messages": [HELLO],
            "max_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    }
)
