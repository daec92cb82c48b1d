"""What ranks are told of a request's sampling: the same names and values, none forgotten."""

from __future__ import annotations

from dataclasses import fields

import msgspec
import pytest

from engine.replica.messages_out import slot_sampling
from engine.spec.request import SamplingParams
from engine.spec.steps import SlotSampling

# What only the host needs, and what it makes of it for the ranks.
HOST_ONLY = {"max_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs"}
RANKS_ONLY = {"banned_ids", "num_logprobs", "num_prompt_logprobs"}
GIVEN = SamplingParams(
    temperature=0.7,
    top_k=3,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.4,
    logit_bias=((5, 1.5), (7, -2.0)),
    logprobs=2,
    choice=1,
    seed=9,
    max_tokens=20,
    min_tokens=4,
    stop_token_ids=(11, 8),
)
SHARED = [field.name for field in fields(SamplingParams) if field.name not in HOST_ONLY]


def test_ranks_know_every_sampling_value_by_the_name_that_callers_use() -> None:
    told = {field.name for field in msgspec.structs.fields(SlotSampling)}
    assert told - RANKS_ONLY == set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_a_value_reaches_the_ranks_unchanged(name: str) -> None:
    given = getattr(GIVEN, name)
    assert given != getattr(SamplingParams(), name), "a default would show nothing"
    told = getattr(slot_sampling(GIVEN, frozenset()), name)
    assert told == (dict(given) if name == "logit_bias" else given)


def test_a_request_that_says_nothing_is_told_by_the_defaults_alone() -> None:
    assert slot_sampling(SamplingParams(), frozenset({2})) == SlotSampling()


def test_tokens_that_would_end_a_sequence_are_banned_where_it_has_a_least_length() -> None:
    eos = frozenset({2, 3})
    assert slot_sampling(GIVEN, eos).banned_ids == (2, 3, 8, 11)
    ignoring = SamplingParams(min_tokens=4, stop_token_ids=(8,), ignore_eos=True)
    assert slot_sampling(ignoring, eos).banned_ids == (8,)


def test_log_probabilities_may_be_asked_for_without_best_tokens() -> None:
    assert slot_sampling(SamplingParams(logprobs=0), frozenset()).num_logprobs == 0
    assert slot_sampling(GIVEN, frozenset()).num_logprobs == 2
    assert slot_sampling(GIVEN, frozenset()).num_prompt_logprobs == -1
    asking = slot_sampling(SamplingParams(prompt_logprobs=3), frozenset())
    assert asking.num_prompt_logprobs == 3
