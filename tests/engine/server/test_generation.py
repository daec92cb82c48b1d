"""The generation endpoints field by field: what is honoured, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import Caps
from engine.request import FinishReason
from tests.engine.server.conftest import MODEL, Server, serving, simulated_engine, wait_until


def _refusal(reply: httpx.Response, status: int = 400) -> dict[str, str]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error: dict[str, str] = reply.json()["error"]
    return error


def test_token_ids_are_a_prompt_as_they_stand(server: Server) -> None:
    ids = server.tokenizer.encode("The engine")
    asked = {"max_tokens": 8, "temperature": 0, "return_token_ids": True}
    by_text = server.complete(prompt="The engine", **asked).json()
    by_ids = server.complete(prompt=ids, **asked).json()
    by_lists = server.complete(prompt=[ids, ids], **asked).json()
    assert by_text["choices"] == by_ids["choices"]
    assert [c["token_ids"] for c in by_lists["choices"]] == [by_ids["choices"][0]["token_ids"]] * 2
    assert by_lists["usage"]["prompt_tokens"] == 2 * len(ids)


def test_echo_puts_the_prompt_before_the_output(server: Server) -> None:
    plain = server.complete(prompt="The engine", max_tokens=4, temperature=0)
    echoed = server.complete(prompt="The engine", max_tokens=4, temperature=0, echo=True)
    text = plain.json()["choices"][0]["text"]
    assert echoed.json()["choices"][0]["text"] == "The engine" + text
    body = {"prompt": "The engine", "max_tokens": 4, "temperature": 0, "echo": True, "stream": True}
    lines = server.complete(**body).text.splitlines()
    first = json.loads(next(line for line in lines if line)[len("data: ") :])
    assert first["choices"][0]["text"].startswith("The engine")


def test_an_output_ends_before_a_stop_string(server: Server) -> None:
    asked = {"prompt": "The engine", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    text = server.complete(**asked).json()["choices"][0]["text"]
    stop = text[9:12]
    choice = server.complete(**asked, stop=[stop]).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop)]


def test_a_stop_id_counts_only_after_min_tokens(server: Server) -> None:
    asked = {"prompt": "A", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    ids = server.complete(**asked, max_tokens=12).json()["choices"][0]["token_ids"]
    stop = {"stop_token_ids": [ids[0]], "max_tokens": 12}
    early = server.complete(**asked, **stop).json()["choices"][0]
    late = server.complete(**asked, **stop, min_tokens=5).json()["choices"][0]
    assert early["token_ids"] == ids[:1]
    assert early["finish_reason"] == "stop"
    assert len(late["token_ids"]) >= 5


def test_top_k_of_one_is_greedy_at_any_temperature(server: Server) -> None:
    asked = {"prompt": "A long prompt", "max_tokens": 12, "return_token_ids": True}
    greedy = server.complete(**asked, temperature=0).json()["choices"][0]
    narrow = server.complete(**asked, temperature=2, top_k=1).json()["choices"][0]
    assert narrow["token_ids"] == greedy["token_ids"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("suffix", "end"),
        ("prompt_logprobs", 1),
        ("guided_json", {}),
        ("bad_words", ["x"]),
        ("priority", -1),
        ("made_up", None),
    ],
)
def test_a_field_that_would_be_ignored_is_refused_by_name(
    server: Server, field: str, value: object
) -> None:
    error = _refusal(server.complete(prompt="x", **{field: value}))
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


def test_fields_that_ask_for_what_happens_anyway_are_fine(server: Server) -> None:
    fine = {"best_of": 1, "logit_bias": {}, "top_logprobs": 0, "user": "u1", "logprobs": None}
    assert server.complete(prompt="x", max_tokens=1, **fine).status_code == 200


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
        ({"prompt": "x", "logprobs": 1, "echo": True}, "logprobs"),
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
    error = _refusal(server.complete(**body))
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
    assert _refusal(server.http.post(path, content=content, headers=headers))["param"] == param


def test_as_many_outputs_as_one_call_may_have_share_what_they_ask_for(slow_server: Server) -> None:
    bias = {str(token): -1.0 for token in range(500)}
    body = {"prompt": ["a"] * 8, "n": 16, "max_tokens": 1, "logit_bias": bias}
    assert len(slow_server.complete(**body).json()["choices"]) == 128


def test_a_long_wrong_prompt_gets_a_short_answer(server: Server) -> None:
    error = _refusal(server.complete(prompt=[1, "a"] * 5000))
    assert len(error["message"]) < 1000


def test_a_body_that_is_no_json_is_a_400(server: Server) -> None:
    headers = {"content-type": "application/json"}
    reply = server.http.post("/v1/completions", content=b"{", headers=headers)
    assert _refusal(reply)["code"] == "invalid_request"


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(server: Server) -> None:
    limit = server.engine.max_model_len
    error = _refusal(server.complete(prompt=[5] * (limit + 10)))
    assert error["code"] == "context_length_exceeded"
    assert str(limit) in error["message"]
    assert str(limit + 10) in error["message"]


def test_asking_for_more_output_than_the_context_leaves_is_refused(server: Server) -> None:
    limit = server.engine.max_model_len
    error = _refusal(server.complete(prompt=[5] * 10, max_tokens=limit))
    assert error["param"] == "max_tokens"
    assert f"{limit - 10} are left" in error["message"]


def test_a_default_output_length_shrinks_to_what_is_left(slow_server: Server) -> None:
    limit = slow_server.engine.max_model_len
    reply = slow_server.complete(prompt=[5] * (limit - 3), ignore_eos=True)
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_a_chat_refuses_pictures_and_tools_by_name(server: Server) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    error = _refusal(server.chat(messages=[{"role": "user", "content": picture}]))
    assert error["param"] == "messages"
    messages = [{"role": "user", "content": "x"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert _refusal(server.chat(messages=messages, tools=tools))["param"] == "tools"


def test_text_parts_of_a_message_are_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    asked = {"max_tokens": 6, "temperature": 0}
    in_parts = server.chat(messages=[{"role": "user", "content": parts}], **asked)
    whole = server.chat(messages=[{"role": "user", "content": "Hello"}], **asked)
    assert in_parts.json()["choices"] == whole.json()["choices"]


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
            assert _refusal(reply, 429)["code"] == "queue_full"
            assert int(reply.headers["retry-after"]) >= 1
            # Several choices are all accepted or none.
            assert server.complete(prompt="x", n=2).status_code == 429
            assert engine.stats().waiting == 1


def test_every_v1_path_needs_the_key_and_health_does_not(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir, api_key="s3cret") as server,
    ):
        for path in ("/v1/models", "/v1/engine/policy", "/v1/engine/capabilities"):
            reply = server.http.get(path)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert _refusal(server.complete(prompt="x"), 401)["type"] == "authentication_error"
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
        assert _refusal(reply, 503)["type"] == "server_error"
        assert int(reply.headers["retry-after"]) >= 1


def test_an_unknown_path_speaks_the_form_of_its_plane(server: Server) -> None:
    assert _refusal(server.http.get("/v1/embeddings"), 404)["code"] == "not_found"
    reply = server.http.get("/v1/engine/nothing")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == "not_found"


def test_a_chat_refuses_best_tokens_without_log_probabilities(server: Server) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert _refusal(server.chat(messages=messages, top_logprobs=2))["param"] == "top_logprobs"


def test_a_stop_string_is_shown_where_asked_for(server: Server) -> None:
    asked = {"prompt": "The engine", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    text = server.complete(**asked).json()["choices"][0]["text"]
    stop = text[9:12]
    asked |= {"stop": ["never", stop], "include_stop_str_in_output": True}
    choice = server.complete(**asked).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop) + len(stop)]
    streamed = [chunk["choices"][0] for chunk in _chunks(server.complete(**asked, stream=True))]
    assert "".join(piece["text"] for piece in streamed) == choice["text"]
    assert streamed[-1]["finish_reason"] == "stop"


def test_special_tokens_are_shown_where_asked_for(server: Server) -> None:
    word = "<|role|>"
    (special,) = server.tokenizer.encode(word, add_special_tokens=False)
    asked = {"prompt": "A", "temperature": 0, "max_tokens": 3, "logit_bias": {str(special): 100}}
    assert server.complete(**asked).json()["choices"][0]["text"] == ""
    shown = server.complete(**asked, skip_special_tokens=False).json()["choices"][0]
    assert shown["text"] == word * 3


def test_a_stop_string_inside_shown_special_tokens_ends_the_choice(server: Server) -> None:
    word = "<|role|>"
    (special,) = server.tokenizer.encode(word, add_special_tokens=False)
    asked = {"prompt": "A", "temperature": 0, "max_tokens": 2000, "ignore_eos": True}
    asked |= {"logit_bias": {str(special): 100}, "skip_special_tokens": False, "stop": word[2:]}
    before = server.engine.stats().finished
    answer = server.complete(**asked, return_token_ids=True, logprobs=0).json()
    (choice,) = answer["choices"]
    assert choice["text"] == word[:2]
    assert choice["finish_reason"] == "stop"
    assert choice["token_ids"] == [special]
    assert len(choice["logprobs"]["tokens"]) == 1
    assert answer["usage"]["completion_tokens"] == 1
    ended = {**before, FinishReason.STOP: before[FinishReason.STOP] + 1}
    wait_until(lambda: server.engine.stats().finished == ended)


def test_an_end_token_is_shown_only_with_special_tokens_and_its_stop(server: Server) -> None:
    end = min(server.engine.model.eos_token_ids)
    word = server.tokenizer.decode([end], skip_special_tokens=False)
    asked = {"prompt": "A", "temperature": 0, "max_tokens": 9, "logit_bias": {str(end): 100}}
    hidden = server.complete(**asked, skip_special_tokens=False).json()["choices"][0]
    shown = server.complete(
        **asked, skip_special_tokens=False, include_stop_str_in_output=True
    ).json()["choices"][0]
    assert (hidden["text"], hidden["finish_reason"]) == ("", "stop")
    assert (shown["text"], shown["finish_reason"]) == (word, "stop")


def test_a_bias_decides_and_a_penalty_forbids_repeats(server: Server) -> None:
    asked = {"prompt": "A", "temperature": 0, "max_tokens": 6, "return_token_ids": True}
    biased = server.complete(**asked, ignore_eos=True, logit_bias={"40": 100}).json()
    assert biased["choices"][0]["token_ids"] == [40] * 6
    two = {"40": 60.5, "41": 60}
    varied = server.complete(**asked, ignore_eos=True, logit_bias=two, presence_penalty=2).json()
    assert {40, 41} == set(varied["choices"][0]["token_ids"])


def test_min_p_of_one_is_greedy_at_any_temperature(server: Server) -> None:
    asked = {"prompt": "A long prompt", "max_tokens": 12, "return_token_ids": True}
    greedy = server.complete(**asked, temperature=0).json()["choices"][0]
    narrow = server.complete(**asked, temperature=2, min_p=1).json()["choices"][0]
    assert narrow["token_ids"] == greedy["token_ids"]


def test_choices_without_a_seed_differ_from_call_to_call_and_among_themselves(
    server: Server,
) -> None:
    asked = {"prompt": "A", "n": 3, "best_of": 3, "max_tokens": 12, "temperature": 1}
    texts = [
        choice["text"] for _ in range(2) for choice in server.complete(**asked).json()["choices"]
    ]
    assert len(set(texts)) == 6


def test_every_chunk_has_the_usage_so_far_where_asked_for(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"prompt": "The engine", "max_tokens": 5, "ignore_eos": True, "stream": True}
    chunks = _chunks(server.complete(**asked, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert all(
        c["usage"]["total_tokens"] == c["usage"]["prompt_tokens"] + n
        for c, n in zip(chunks, counts, strict=True)
    )
    lone = {"continuous_usage_stats": True}
    refused = _refusal(server.complete(**asked, stream_options=lone))
    assert refused["param"] == "stream_options"


def test_a_request_past_its_deadline_is_a_408_that_is_not_to_be_repeated(
    slow_server: Server,
) -> None:
    asked = {"prompt": "A", "max_tokens": 2000, "ignore_eos": True, "timeout_ms": 150}
    reply = slow_server.complete(**asked)
    assert _refusal(reply, 408)["code"] == "deadline_exceeded"
    assert reply.headers["x-should-retry"] == "false"
    wait_until(lambda: slow_server.engine.stats().running == 0)


def test_a_stream_past_its_deadline_ends_with_an_error_after_its_tokens(
    slow_server: Server,
) -> None:
    asked = {"prompt": "A", "max_tokens": 2000, "ignore_eos": True, "timeout_ms": 150, "n": 2}
    lines = slow_server.complete(**asked, stream=True).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    error = json.loads(lines[-3].removeprefix("data: "))["error"]
    assert (error["code"], error["param"]) == ("deadline_exceeded", "timeout_ms")
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-3]]
    assert {piece["index"] for piece in pieces} == {0, 1}
    assert all(piece["finish_reason"] is None for piece in pieces)


def test_a_priority_counts_where_the_policy_orders_by_it(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir) as server,
    ):
        assert "scheduler.order" in _refusal(server.complete(prompt="x", priority=3))["message"]
        etag = server.http.get("/v1/engine/policy").headers["etag"]
        reply = server.http.patch(
            "/v1/engine/policy",
            json={"scheduler": {"order": "priority"}},
            headers={"if-match": etag},
        )
        assert reply.status_code == 200, reply.text
        assert server.complete(prompt="x", max_tokens=1, priority=3).status_code == 200


def _chunks(reply: httpx.Response) -> list[dict[str, Any]]:
    """The documents of a stream that ended well."""
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
