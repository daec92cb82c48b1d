"""A client that sends what ``vllm bench serve`` sends and reads streams as it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.engine.server.conftest import MODEL, Server

OUTPUT = 12


@dataclass(kw_only=True)
class Reading:
    """What the benchmark keeps of one stream."""

    texts: list[str] = field(default_factory=list)
    output_tokens: int | None = None
    is_ended: bool = False


def _messages(reply: httpx.Response) -> Iterator[str]:
    """Events as the benchmark cuts them: by blank lines, comments left out."""
    rest = ""
    for chunk in reply.iter_bytes():
        rest += chunk.decode()
        while "\n\n" in rest:
            message, rest = rest.split("\n\n", 1)
            if message.strip() and not message.startswith(":"):
                yield message.removeprefix("data: ")
    assert rest.strip() == ""


def _read(server: Server, path: str, payload: dict[str, Any]) -> Reading:
    reading = Reading()
    headers = {"Authorization": "Bearer none", "x-request-id": "bench-0"}
    with server.http.stream("POST", path, json=payload, headers=headers) as reply:
        assert reply.status_code == 200, reply.read()
        for message in _messages(reply):
            if message == "[DONE]":
                reading.is_ended = True
                continue
            data = json.loads(message)
            if choices := data.get("choices"):
                choice = choices[0]
                text = choice["text"] if "text" in choice else choice["delta"].get("content")
                reading.texts.append(text or "")
            elif usage := data.get("usage"):
                reading.output_tokens = usage["completion_tokens"]
    return reading


@pytest.mark.parametrize("logprobs", [None, 5])
def test_its_completions_stream_to_the_length_asked_for(
    server: Server, logprobs: int | None
) -> None:
    payload = {
        "model": MODEL,
        "prompt": "The engine",
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "best_of": 1,
        "max_tokens": OUTPUT,
        "logprobs": logprobs,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    reading = _read(server, "/v1/completions", payload)
    assert reading.output_tokens == OUTPUT
    assert reading.is_ended
    assert "".join(reading.texts)


def test_its_token_id_prompts_and_extra_sampling_are_served(server: Server) -> None:
    payload = {
        "model": MODEL,
        "prompt": [5, 6, 7, 8],
        "repetition_penalty": 1.1,
        "max_tokens": OUTPUT,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
    }
    reading = _read(server, "/v1/completions", payload)
    assert reading.output_tokens == OUTPUT


def test_its_chats_stream_to_the_length_asked_for(server: Server) -> None:
    payload = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "The engine"}]}],
        "temperature": 0.0,
        "max_completion_tokens": OUTPUT,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    reading = _read(server, "/v1/chat/completions", payload)
    assert reading.output_tokens == OUTPUT
    assert reading.is_ended
    assert "".join(reading.texts)


def test_it_finds_the_model_by_asking_for_the_list(server: Server) -> None:
    assert server.http.get("/v1/models").json()["data"][0]["id"] == MODEL
    assert server.http.get("/metrics").status_code == 200
