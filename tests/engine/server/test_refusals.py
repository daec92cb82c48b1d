"""What the generation endpoints refuse, and with which words."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from engine.server.keys import ServerKeys
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from tests.engine.server.conftest import (
    MODEL,
    Server,
    refusal,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("suffix", "end"),
        ("guided_json", {}),
        ("bad_words", ["x"]),
        ("priority", -1),
        ("made_up", False),
        ("spaces_between_special_tokens", False),
        ("reasoning_effort", "high"),
        ("structured_outputs", {"choice": ["a"]}),
    ],
)
def test_a_field_that_would_be_ignored_is_refused_by_name(
    server: Server, field: str, value: object
) -> None:
    error = refusal(server.complete(prompt="x", **{field: value}))
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


def test_fields_that_ask_for_what_happens_anyway_are_fine(server: Server) -> None:
    fine = {"best_of": 1, "logit_bias": {}, "top_logprobs": 0, "user": "u1", "logprobs": None}
    assert server.complete(prompt="x", max_tokens=1, **fine).status_code == 200


def test_a_field_that_no_answer_depends_on_is_ignored_and_the_log_says_so_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert server.complete(prompt="x", max_tokens=1, session_id="a").status_code == 200
        chat = server.chat(messages=[{"role": "user", "content": "x"}], max_tokens=1, provider={})
        assert chat.status_code == 200
    said = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(said) == 2
    assert "'session_id'" in said[0]
    assert "'provider'" in said[1]


@pytest.mark.parametrize(
    "field", ["skip_special_tokens", "ignore_eos", "min_tokens", "priority", "made_up", "tools"]
)
def test_null_is_as_good_as_leaving_a_field_out(server: Server, field: str) -> None:
    assert server.complete(prompt="x", max_tokens=1, **{field: None}).status_code == 200
    options = {"include_usage": None}
    reply = server.complete(prompt="x", max_tokens=1, stream=True, stream_options=options)
    assert reply.status_code == 200


def test_the_newer_name_of_the_output_limit_is_known_to_completions_too(server: Server) -> None:
    def num_tokens(**limits: int) -> int:
        reply = server.complete(prompt=[5, 6], ignore_eos=True, **limits)
        return int(reply.json()["usage"]["completion_tokens"])

    assert num_tokens(max_completion_tokens=3) == 3
    assert num_tokens(max_tokens=4, max_completion_tokens=4) == 4
    assert num_tokens(max_tokens=9, max_completion_tokens=2) == 2
    error = refusal(server.complete(prompt="x", max_completion_tokens=0))
    assert error["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "seed": "abc"}, "seed"),
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 99_999]}, "prompt"),
        ({"prompt": [1, -1]}, None),
        ({"prompt": {"a": 1}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": [True, 5]}, "prompt"),
        ({"prompt": [[5], [False]]}, "prompt"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "temperature": False}, "temperature"),
        ({"prompt": "x", "seed": True}, "seed"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": "x", "stop_token_ids": [True]}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {"5": True}}, "logit_bias"),
        ({"prompt": [1, 2**31]}, "prompt"),
        ({"prompt": [1, 2**70]}, "prompt"),
        ({"prompt": [[1], [2**40]], "echo": True}, "prompt"),
        ({"prompt": [99_999], "echo": True}, "prompt"),
        ({"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {str(2**64): 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
        ({"prompt": "x", "stop_token_ids": [99_999]}, "stop_token_ids"),
        ({"prompt": "x", "stop_token_ids": [2**64]}, "stop_token_ids"),
        ({"prompt": "x", "stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"prompt": "x", "stop": ["a"] * 65}, "stop"),
        ({"prompt": "x", "stop": "a" * 1025}, "stop"),
        ({"prompt": ["x"] * 9, "n": 128}, "prompt"),
        ({"prompt": [[1]] * 1025}, "prompt"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": "x", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt": "x", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt": "x", "presence_penalty": 2.5}, "presence_penalty"),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "x", "min_p": 1.5}, "min_p"),
        ({"prompt": "x", "logit_bias": {"five": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"5": 101}}, "logit_bias"),
        ({"prompt": "x", "timeout_ms": 0}, "timeout_ms"),
        ({"prompt": "x", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "x", "stream": True, "stream_options": {"typo": 1}}, "stream_options"),
    ],
)
def test_a_bad_value_is_a_400_that_names_it(
    server: Server, body: dict[str, object], param: str | None
) -> None:
    if body == {"prompt": ""}:
        # The tokenizer starts every text with its begin token, so an empty one has a token.
        assert server.complete(**body, max_tokens=1).status_code == 200
        return
    error = refusal(server.complete(**body))
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "\ud800"}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b\ud800"], "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": "x", "stop": ["\ud800"]}, "stop"),
        ("/v1/chat/completions", {"messages": [{"role": "r", "content": "\ud800"}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "\ud800", "content": "x"}]}, "messages"),
        ("/tokenize", {"prompt": "\ud800"}, "prompt"),
    ],
)
def test_half_a_surrogate_pair_is_a_400_that_names_its_field(
    server: Server, path: str, body: dict[str, object], param: str
) -> None:
    content = json.dumps({"model": MODEL, **body})  # escaped, as JSON can hold it
    headers = {"content-type": "application/json"}
    assert refusal(server.http.post(path, content=content, headers=headers))["param"] == param


def test_a_long_wrong_prompt_gets_a_short_answer(server: Server) -> None:
    error = refusal(server.complete(prompt=[1, "a"] * 5000))
    assert len(error["message"]) < 1000


def test_a_body_that_is_no_json_is_a_400(server: Server) -> None:
    headers = {"content-type": "application/json"}
    reply = server.http.post("/v1/completions", content=b"{", headers=headers)
    assert refusal(reply)["code"] == "invalid_request"


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(server: Server) -> None:
    limit = server.engine.max_model_len
    error = refusal(server.complete(prompt=[5] * (limit + 10)))
    assert error["code"] == "context_length_exceeded"
    assert str(limit) in error["message"]
    assert str(limit + 10) in error["message"]


def test_asking_for_more_output_than_the_context_leaves_is_refused(server: Server) -> None:
    limit = server.engine.max_model_len
    error = refusal(server.complete(prompt=[5] * 10, max_tokens=limit))
    assert error["param"] == "max_tokens"
    assert f"{limit - 10} are left" in error["message"]


def test_a_chat_refuses_pictures_by_name(server: Server) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    error = refusal(server.chat(messages=[{"role": "user", "content": picture}]))
    assert error["param"] == "messages"


def test_a_full_queue_is_a_429_that_says_when_to_come_back(tiny_dir: Path) -> None:
    caps = Caps(max_num_seqs=1, max_queue=1)
    with (
        simulated_engine(tiny_dir, step_s=0.02, caps=caps) as engine,
        serving(engine, tiny_dir) as server,
    ):
        body = {"model": MODEL, "prompt": "x", "max_tokens": 500, "stream": True}
        with (
            server.http.stream("POST", "/v1/completions", json=body) as running,
            server.http.stream("POST", "/v1/completions", json=body),
        ):
            lines = running.iter_lines()  # dropped, it would close the connection
            next(lines)
            wait_until(lambda: engine.stats().waiting == 1)
            reply = server.complete(prompt="x")
            assert refusal(reply, 429)["code"] == "queue_full"
            assert int(reply.headers["retry-after"]) >= 1
            # Several choices are all accepted or none.
            assert server.complete(prompt="x", n=2).status_code == 429
            assert engine.stats().waiting == 1


def test_every_v1_path_needs_the_key_and_health_does_not(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir, keys=ServerKeys(api="s3cret")) as server,
    ):
        for path in ("/v1/models", "/v1/engine/policy", "/v1/engine/capabilities"):
            reply = server.http.get(path)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert refusal(server.complete(prompt="x"), 401)["type"] == "authentication_error"
        assert server.http.patch("/v1/engine/policy", json={}).status_code == 401
        wrong = {"authorization": "Bearer s3cre"}
        assert server.http.get("/v1/models", headers=wrong).status_code == 401
        right = {"authorization": "Bearer s3cret"}
        assert server.http.get("/v1/models", headers=right).status_code == 200
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/metrics").status_code == 200


def test_a_closed_engine_is_unhealthy_and_serves_nothing(tiny_dir: Path) -> None:
    engine = simulated_engine(tiny_dir, step_s=0.001)
    engine.start()
    with serving(engine, tiny_dir) as server:
        engine.close()
        reply = server.complete(prompt="x")
        assert refusal(reply, 503)["type"] == "server_error"
        assert int(reply.headers["retry-after"]) >= 1


def test_while_one_replica_serves_requests_are_taken(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    plan = ParallelPlan(dp=2)
    with (
        simulated_engine(tiny_dir, step_s=0.001, plan=plan) as engine,
        serving(engine, tiny_dir) as server,
    ):
        first, second = engine._door.list_replicas()
        first._mailbox.post(fail)
        wait_until(lambda: first.failure is not None)
        assert server.http.get("/health").status_code == 503
        for _ in range(4):
            assert server.complete(prompt="x", max_tokens=2).status_code == 200
        second._mailbox.post(fail)
        wait_until(lambda: second.failure is not None)
        assert refusal(server.complete(prompt="x"), 503)["code"] == "engine_unhealthy"


def test_an_unknown_path_speaks_the_form_of_its_plane(server: Server) -> None:
    assert refusal(server.http.get("/v1/embeddings"), 404)["code"] == "not_found"
    reply = server.http.get("/v1/engine/nothing")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == "not_found"


def test_a_chat_refuses_best_tokens_without_log_probabilities(server: Server) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert refusal(server.chat(messages=messages, top_logprobs=2))["param"] == "top_logprobs"


def test_a_body_that_is_no_json_is_refused_as_a_whole(server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    broken = b'{"model": "tiny", "prompt": '
    error = refusal(server.http.post("/v1/completions", content=broken, headers=headers))
    assert error["param"] is None
    assert "body: no JSON at character 28" in error["message"]


def test_a_body_that_is_not_called_json_is_refused_with_the_way_out(server: Server) -> None:
    """As curl -d sends it."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b'{"model": "tiny", "prompt": "x"}'
    error = refusal(server.http.post("/v1/completions", content=body, headers=form))
    assert error["param"] is None
    assert "must be application/json, and is application/x-www-form-urlencoded" in error["message"]
