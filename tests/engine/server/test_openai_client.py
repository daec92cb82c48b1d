"""The `openai` Python client runs against the server unchanged."""

from __future__ import annotations

from collections.abc import Iterator

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
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        max_completion_tokens=10,
        temperature=0,
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.tokenizer.apply_chat(messages))
    assert 1 <= answer.usage.completion_tokens <= 10


def test_a_streamed_chat_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    def ask(**extra: object) -> object:
        return client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=20,
            temperature=0.8,
            seed=7,
            **extra,  # type: ignore[call-overload]
        )

    whole = ask()
    chunks = list(ask(stream=True))  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content  # type: ignore[attr-defined]


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
        client.completions.create(model=MODEL, prompt="x", logprobs=3)
    assert caught.value.param == "logprobs"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x")
