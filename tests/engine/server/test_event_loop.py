"""What is done beside the event loop, and what counts as waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.engine import Engine
from engine.server.app import create_server
from engine.spec.config import EngineConfig
from engine.text.tokenizer import Tokenizer
from tests.engine.server.conftest import MODEL, simulated_engine

ENCODE_S = 0.02


class WatchedTokenizer(Tokenizer):
    """Notes on which threads it works, and takes a while to encode."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threads: set[int] = set()
        self.wording_threads: set[int] = set()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.add(threading.get_ident())
        time.sleep(ENCODE_S)
        return super().encode(text, add_special_tokens=add_special_tokens)

    def chat_text(self, messages: Sequence[Any], **values: Any) -> str:
        self.threads.add(threading.get_ident())
        return super().chat_text(messages, **values)

    def token_bytes(self, token_id: int) -> bytes:
        self.wording_threads.add(threading.get_ident())
        return super().token_bytes(token_id)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if len(ids) == 1:  # not a detokeniser's window
            self.threads.add(threading.get_ident())
        return super().decode(ids, skip_special_tokens=skip_special_tokens)


def _post(tiny_dir: Path, tokenizer: Tokenizer, path: str, body: dict[str, Any]) -> str:
    """The metrics after one successful call of an engine that only takes time."""
    with simulated_engine(tiny_dir, step_s=0.001) as engine:
        return _ask(engine, tokenizer, path, body)


def _ask(engine: Engine, tokenizer: Tokenizer, path: str, body: dict[str, Any]) -> str:
    """The metrics after one successful call, made on this thread's event loop."""

    async def call() -> str:
        transport = httpx.ASGITransport(create_server(engine, tokenizer, model_name=MODEL))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
            reply = await http.post(path, json={"model": MODEL, **body})
            assert reply.status_code == 200, reply.text
            return (await http.get("/metrics")).text

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["x" * 40] * 50, "max_tokens": 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "r", "content": "x" * 30}] * 100, "max_tokens": 1},
        ),
        ("/tokenize", {"prompt": "x" * 5000, "return_token_strs": True}),
    ],
)
def test_many_short_texts_are_as_much_work_as_a_long_one_and_done_beside_the_loop(
    tiny_dir: Path, path: str, body: dict[str, Any]
) -> None:
    tokenizer = WatchedTokenizer.from_dir(tiny_dir)
    assert isinstance(tokenizer, WatchedTokenizer)
    _post(tiny_dir, tokenizer, path, body)
    assert tokenizer.threads
    assert threading.get_ident() not in tokenizer.threads


@pytest.mark.parametrize(
    "asked", [{"prompt_logprobs": 20}, {"echo": True, "logprobs": 20}, {"stream": True}]
)
def test_log_probabilities_of_a_long_prompt_are_worded_beside_the_loop(
    tiny_dir: Path, asked: dict[str, Any]
) -> None:
    """Those of 32,768 tokens held up all other calls for seconds."""
    tokenizer = WatchedTokenizer.from_dir(tiny_dir)
    assert isinstance(tokenizer, WatchedTokenizer)
    body = {"prompt": [5, 6] * 50, "max_tokens": 1, **asked}
    if "stream" in asked:
        body |= {"echo": True, "logprobs": 20}
    with Engine(EngineConfig(model_dir=tiny_dir, num_kv_blocks=16), tokenizer=tokenizer) as engine:
        _ask(engine, tokenizer, "/v1/completions", body)
    assert tokenizer.wording_threads
    assert threading.get_ident() not in tokenizer.wording_threads


def test_the_time_to_the_first_token_counts_from_before_tokenising(tiny_dir: Path) -> None:
    tokenizer = WatchedTokenizer.from_dir(tiny_dir)
    metrics = _post(tiny_dir, tokenizer, "/v1/completions", {"prompt": "x", "max_tokens": 1})
    (line,) = [
        line
        for line in metrics.splitlines()
        if line.startswith("vllm:time_to_first_token_seconds_sum")
    ]
    assert float(line.rpartition(" ")[2]) >= ENCODE_S
