"""A client that sends what GuideLLM sends, in its versions 0.3 and 0.8."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.server.conftest import MODEL, Server

OUTPUT = 9
TEXT = [{"type": "text", "text": "The engine"}]
# 0.3 sends both names of the limit to both endpoints, 0.8 the one of each.
V03: dict[str, Any] = {
    "max_tokens": OUTPUT,
    "max_completion_tokens": OUTPUT,
    "stop": None,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
V08: dict[str, Any] = {
    "stop": None,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


@pytest.mark.parametrize(
    ("path", "payload"),
    [
        ("completions", {**V03, "prompt": "The engine"}),
        ("chat/completions", {**V03, "messages": [{"role": "user", "content": TEXT}]}),
        ("completions", {**V08, "max_tokens": OUTPUT, "prompt": "The engine"}),
        (
            "chat/completions",
            {
                **V08,
                "max_completion_tokens": OUTPUT,
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": TEXT},
                ],
            },
        ),
    ],
    ids=["0.3-text", "0.3-chat", "0.8-text", "0.8-chat"],
)
def test_its_streams_run_to_the_length_asked_for(
    server: Server, path: str, payload: dict[str, Any]
) -> None:
    texts, usage, is_ended = [], {}, False
    with server.http.stream("POST", f"/v1/{path}", json={"model": MODEL, **payload}) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            if line == "data: [DONE]":
                is_ended = True
            elif line.startswith("data:"):
                event = json.loads(line[5:])
                usage = event.get("usage") or usage
                texts += [
                    choice.get("text") or choice.get("delta", {}).get("content")
                    for choice in event["choices"]
                ]
    assert is_ended
    assert usage["completion_tokens"] == OUTPUT
    assert "".join(text for text in texts if text)


def test_a_whole_answer_and_what_it_asks_before_it_begins(server: Server) -> None:
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/v1/models").json()["data"][0]["id"] == MODEL
    body = {"prompt": "The engine", "max_tokens": OUTPUT, "stop": None, "ignore_eos": True}
    answer = server.complete(**body).json()
    assert answer["usage"]["completion_tokens"] == OUTPUT
    assert answer["choices"][0]["text"]
