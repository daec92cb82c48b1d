"""The `openai` Python client runs against the server unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine.server.conftest import MODEL, Server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "gearshift"


def test_a_completion_comes_with_usage(client: openai.OpenAI, server: Server) -> None:
    answer = client.completions.create(
        model=MODEL,
        prompt="The engine",
        max_tokens=8,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.tokenizer.encode("The engine"))
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_streamed_completion_has_the_same_text_as_a_whole_one(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=MODEL, prompt="The engine", max_tokens=24, temperature=0, seed=0
    )
    stream = client.completions.create(
        model=MODEL,
        prompt="The engine",
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_chat_answers_as_the_assistant(client: openai.OpenAI, server: Server) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_completion_tokens=10,
        temperature=0,
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.chat_tokens(messages))
    assert 1 <= answer.usage.completion_tokens <= 10


def test_a_streamed_chat_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    def ask(**extra: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=20,
            temperature=0.8,
            seed=7,
            **extra,
        )

    whole = ask()
    chunks = list(ask(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_a_seed_repeats_a_random_answer_and_no_seed_does_not(client: openai.OpenAI) -> None:
    def text(seed: int | None) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="The", max_tokens=16, temperature=1.0, seed=seed
        )
        return answer.choices[0].text

    assert text(5) == text(5)
    assert len({text(None) for _ in range(4)}) > 1


def test_choices_of_one_prompt_differ_and_stand_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The", "A"], n=2, max_tokens=12, temperature=1.0, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4


def test_an_error_is_the_clients_own_exception_and_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="x", suffix="end")
    assert caught.value.param == "suffix"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x")


def test_log_probabilities_of_a_completion_stand_beside_its_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The engine", max_tokens=8, temperature=0, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert answer.usage is not None
    lengths = {
        len(found.tokens or ()),
        len(found.token_logprobs or ()),
        len(found.top_logprobs or ()),
        len(found.text_offset or ()),
    }
    assert lengths == {answer.usage.completion_tokens}
    for token, logprob, best in zip(
        found.tokens or (), found.token_logprobs or (), found.top_logprobs or (), strict=True
    ):
        assert len(best) == 3
        assert best[token] == logprob == max(best.values())


def test_streamed_log_probabilities_join_to_the_whole_ones(client: openai.OpenAI) -> None:
    def ask(**extra: Any) -> Any:
        return client.completions.create(
            model=MODEL,
            prompt="The engine",
            max_tokens=12,
            seed=3,
            logprobs=2,
            **extra,
        )

    whole = ask().choices[0].logprobs
    pieces = [chunk.choices[0].logprobs for chunk in ask(stream=True)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for piece in pieces for x in getattr(piece, field)] == getattr(whole, field)


def test_a_chats_log_probabilities_hold_bytes_that_join_to_its_text(client: openai.OpenAI) -> None:
    def ask(**extra: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=12,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            **extra,
        )

    choice = ask().choices[0]
    content = choice.logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    plain = [token for token in content if not token.token.startswith("<|")]
    text = b"".join(bytes(token.bytes) for token in plain).decode(errors="replace")
    assert text == choice.message.content
    pieces = [chunk.choices[0].logprobs for chunk in ask(stream=True)]
    assert [token for piece in pieces for token in piece.content] == content


def test_a_deadline_reaches_the_client_once(slow_server: Server) -> None:
    with openai.OpenAI(base_url=f"{slow_server.url}/v1", api_key="unused") as retrying:
        before = slow_server.engine.stats().prompt_tokens
        with pytest.raises(openai.APIStatusError) as caught:
            retrying.completions.create(
                model=MODEL,
                prompt=[5],
                max_tokens=2000,
                extra_body={"ignore_eos": True, "timeout_ms": 100},
            )
    assert caught.value.status_code == 408
    assert slow_server.engine.stats().prompt_tokens == before + 1
