"""The generation endpoints field by field: what is honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.spec.request import FinishReason
from tests.engine.server.conftest import (
    Server,
    refusal,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until


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


def test_as_many_outputs_as_one_call_may_have_share_what_they_ask_for(slow_server: Server) -> None:
    bias = {str(token): -1.0 for token in range(500)}
    body = {"prompt": ["a"] * 8, "n": 16, "max_tokens": 1, "logit_bias": bias}
    assert len(slow_server.complete(**body).json()["choices"]) == 128


def test_a_default_output_length_shrinks_to_what_is_left(slow_server: Server) -> None:
    limit = slow_server.engine.max_model_len
    reply = slow_server.complete(prompt=[5] * (limit - 3), ignore_eos=True)
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_text_parts_of_a_message_are_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    asked = {"max_tokens": 6, "temperature": 0}
    in_parts = server.chat(messages=[{"role": "user", "content": parts}], **asked)
    whole = server.chat(messages=[{"role": "user", "content": "Hello"}], **asked)
    assert in_parts.json()["choices"] == whole.json()["choices"]


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


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_special_token_is_a_stop_string_whether_it_is_shown_or_not(
    server: Server, is_shown: bool
) -> None:
    word = "<|role|>"
    (special,) = server.tokenizer.encode(word, add_special_tokens=False)
    asked = {"prompt": "A", "max_tokens": 9, "logit_bias": {str(special): 100}, "stop": ["x", word]}
    answer = server.complete(**asked, skip_special_tokens=not is_shown).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert answer["usage"]["completion_tokens"] == 1


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


def test_a_seed_of_minus_one_is_none(server: Server) -> None:
    asked = {"prompt": "A", "temperature": 1.5, "max_tokens": 16, "return_token_ids": True}
    first, again = (
        server.complete(**asked, seed=-1).json()["choices"][0]["token_ids"] for _ in range(2)
    )
    assert first != again
    below, same = (
        server.complete(**asked, seed=-2).json()["choices"][0]["token_ids"] for _ in range(2)
    )
    assert below == same


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
    refused = refusal(server.complete(**asked, stream_options=lone))
    assert refused["param"] == "stream_options"


def test_a_request_past_its_deadline_is_a_408_that_is_not_to_be_repeated(
    slow_server: Server,
) -> None:
    asked = {"prompt": "A", "max_tokens": 2000, "ignore_eos": True, "timeout_ms": 150}
    reply = slow_server.complete(**asked)
    assert refusal(reply, 408)["code"] == "deadline_exceeded"
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
        assert "scheduler.order" in refusal(server.complete(prompt="x", priority=3))["message"]
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
