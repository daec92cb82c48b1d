"""What evaluation harnesses ask of ``/v1/completions`` to score continuations.

The bodies are those of lm-eval's ``local-completions`` model, which sends prompts as token ids,
``echo`` with ``logprobs`` and one token to generate, and reads the log probabilities from the end
of the context on.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from engine.spec.request import SamplingParams
from tests.engine.server.conftest import Server

CONTEXT = "The engine runs"
CONTINUATIONS = (" every step", " nothing at all", "!")


def loglikelihoods(
    server: Server, pairs: list[tuple[list[int], list[int]]], **changes: Any
) -> list[tuple[float, bool]]:
    """Of each (context, continuation) in token ids: the continuation's log probability, and
    whether greedy decoding would give it, read as the harness does."""
    body = {
        "prompt": [[*context, *continuation] for context, continuation in pairs],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    reply = server.complete(**body | changes)
    assert reply.status_code == 200, reply.text
    choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
    end = None if changes.get("max_tokens") == 0 else -1
    found = []
    for choice, (context, _) in zip(choices, pairs, strict=True):
        told = choice["logprobs"]
        values = told["token_logprobs"][len(context) : end]
        best = [max(top.values()) for top in told["top_logprobs"][len(context) : end]]
        found.append((sum(values), values == best))
    return found


def make_pairs(server: Server) -> list[tuple[list[int], list[int]]]:
    context = server.tokenizer.encode(CONTEXT)
    encode = server.tokenizer.encode
    return [(context, encode(text, add_special_tokens=False)) for text in CONTINUATIONS]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_continuations_are_scored_as_one_step_after_each_beginning_scores_them(
    server: Server, max_tokens: int
) -> None:
    pairs = make_pairs(server)
    found = loglikelihoods(server, pairs, max_tokens=max_tokens)
    for (context, continuation), (value, is_greedy) in zip(pairs, found, strict=True):
        wanted = 0.0
        is_best = True
        for nth, token in enumerate(continuation):
            before = (*context, *continuation[:nth])
            # The bias makes the token the one that is chosen, and so told of, whatever its value.
            sampling = SamplingParams(
                max_tokens=1, ignore_eos=True, logprobs=1, logit_bias=((token, 100.0),)
            )
            (entry,) = server.engine.generate(before, sampling).logprobs
            assert entry.token_id == token
            wanted += entry.logprob
            is_best &= entry.rank == 1
        assert value == pytest.approx(wanted, abs=1e-4)
        assert is_greedy == is_best


def test_the_greedy_continuation_is_known_as_such(server: Server) -> None:
    context = server.tokenizer.encode(CONTEXT)
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    greedy = list(server.engine.generate(tuple(context), sampling).token_ids)
    other = [*greedy[:-1], greedy[-1] + 1]
    (first, is_greedy), (second, is_other_greedy) = loglikelihoods(
        server, [(context, greedy), (context, other)]
    )
    assert is_greedy
    assert not is_other_greedy
    assert first > second


def test_echoed_text_and_its_log_probabilities_lie_over_one_another(server: Server) -> None:
    text = "The engine \u4e2d <tool> runs"
    choice = server.complete(
        prompt=text, max_tokens=5, temperature=0, logprobs=2, echo=True, ignore_eos=True
    ).json()["choices"][0]
    told = choice["logprobs"]
    ids = server.tokenizer.encode(text)
    assert choice["text"].startswith(text)
    assert len(told["tokens"]) == len(ids) + 5
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert all(value <= 0 for value in told["token_logprobs"][1:])
    assert all(2 <= len(top) <= 3 for top in told["top_logprobs"][1:])
    offsets = told["text_offset"]
    assert all(before <= after for before, after in pairwise(offsets))
    for token_id, token, offset in zip(ids, told["tokens"], offsets, strict=False):
        if not token.startswith("bytes:") and not server.tokenizer.is_special(token_id):
            assert choice["text"][offset : offset + len(token)] == token
    assert offsets[len(ids)] == len(text), "the output begins where the prompt ends"


def test_a_stream_echoes_the_same_log_probabilities(server: Server) -> None:
    body = {"prompt": CONTEXT, "max_tokens": 4, "temperature": 0, "logprobs": 1, "echo": True}
    whole = server.complete(**body).json()["choices"][0]
    told: dict[str, list[Any]] = {name: [] for name in whole["logprobs"]}
    text = ""
    lines = server.complete(**body, stream=True).text.split("\n\n")
    for line in lines:
        if line.startswith("data: {"):
            piece = json.loads(line[len("data: ") :])["choices"][0]
            text += piece["text"]
            for name, values in piece["logprobs"].items():
                told[name] += values
    assert text == whole["text"]
    assert told == whole["logprobs"]


def test_a_prompt_alone_costs_no_output(server: Server) -> None:
    reply = server.complete(
        prompt=CONTEXT, max_tokens=0, echo=True, logprobs=0, return_token_ids=True
    ).json()
    (choice,) = reply["choices"]
    assert choice["text"] == CONTEXT
    assert choice["finish_reason"] == "length"
    assert choice["token_ids"] == []
    assert len(choice["logprobs"]["tokens"]) == len(server.tokenizer.encode(CONTEXT))
    assert reply["usage"]["completion_tokens"] == 0
    plain = server.complete(prompt=[CONTEXT, "x"], max_tokens=0, echo=True).json()["choices"]
    assert [choice["text"] for choice in plain] == [CONTEXT, "x"]
    assert [choice["logprobs"] for choice in plain] == [None, None]


def test_vllms_name_for_them_is_known_to_both_endpoints(server: Server) -> None:
    ids = server.tokenizer.encode(CONTEXT)
    completion = server.complete(prompt=ids, max_tokens=1, prompt_logprobs=2, n=2).json()
    for choice in completion["choices"]:
        first, *others = choice["prompt_logprobs"]
        assert first is None
        assert len(others) == len(ids) - 1
        for token_id, told in zip(ids[1:], others, strict=True):
            assert 2 <= len(told) <= 3
            assert {entry["rank"] for entry in told.values()} >= {1, 2}
            assert told[str(token_id)]["logprob"] <= 0
        assert choice["logprobs"] is None
    chat = server.chat(
        messages=[{"role": "user", "content": "hi"}], max_tokens=1, prompt_logprobs=0
    ).json()
    prompt = server.chat_tokens([{"role": "user", "content": "hi"}])
    assert [list(told) for told in chat["prompt_logprobs"][1:]] == [[str(i)] for i in prompt[1:]]


def test_each_name_gets_as_many_as_it_asked_for(server: Server) -> None:
    (choice,) = server.complete(
        prompt=CONTEXT, max_tokens=1, temperature=0, echo=True, logprobs=1, prompt_logprobs=4
    ).json()["choices"]
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(4 <= len(told) <= 5 for told in choice["prompt_logprobs"][1:])
