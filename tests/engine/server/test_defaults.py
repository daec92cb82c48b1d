"""What requests are sampled with when they do not say: ``generation_config.json``, or nothing."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.engine import Engine
from engine.server.defaults import SamplingDefaults
from engine.spec.config import EngineConfig
from engine.spec.errors import CheckpointError
from engine.text.tokenizer import Tokenizer
from tests.engine.server.conftest import Server, refusal, serving

FILE = "generation_config.json"
RECOMMENDED = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "max_new_tokens": 2048,
    "do_sample": True,
    "eos_token_id": [1, 2],
    "transformers_version": "4.51.0",
}


def read(raw: dict[str, Any]) -> SamplingDefaults:
    return SamplingDefaults.from_json(raw, where=FILE)


def test_a_file_gives_the_values_that_are_sampled_with_and_one_line_tells_them() -> None:
    defaults = read(RECOMMENDED)
    assert defaults == SamplingDefaults(
        temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, max_new_tokens=2048
    )
    assert defaults.notice is not None
    assert "temperature=0.6, top_k=20, top_p=0.95" in defaults.notice
    assert "max_new_tokens=2048" in defaults.notice
    assert read({"temperature": None, "top_k": -1, "do_sample": False}).notice is None


def test_the_word_chooses_the_models_file_none_or_another(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    model.mkdir()
    other.mkdir()
    (model / FILE).write_text(json.dumps({"temperature": 0.6}))
    (other / FILE).write_text(json.dumps({"temperature": 0.7}))
    assert SamplingDefaults.read("auto", model).temperature == 0.6
    assert SamplingDefaults.read("vllm", model).temperature == 1.0
    assert SamplingDefaults.read(str(other), model).temperature == 0.7
    assert SamplingDefaults.read(str(other / FILE), model).temperature == 0.7
    (model / FILE).unlink()
    assert SamplingDefaults.read("auto", model) == SamplingDefaults()
    with pytest.raises(CheckpointError, match="nowhere"):
        SamplingDefaults.read(str(tmp_path / "nowhere"), model)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"temperature": True}, "temperature is True, not a number"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": 2.5}, "top_k is 2.5, not a whole number"),
        ({"top_p": 0}, "top_p=0"),
        ({"repetition_penalty": [1]}, "repetition_penalty is [1], not a number"),
        ({"max_new_tokens": 0}, "max_tokens=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": float("inf")}, "top_k"),
    ],
)
def test_a_value_that_cannot_be_sampled_with_is_refused_by_name(
    raw: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=f"^{FILE}: {re.escape(words)}"):
        read(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    raw=st.dictionaries(
        st.sampled_from(["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
        | st.just("max_new_tokens"),
        json_values,
    )
)
def test_whatever_a_file_holds_it_is_read_or_refused(raw: dict[str, Any]) -> None:
    with contextlib.suppress(CheckpointError):
        assert read(raw).temperature >= 0


@pytest.fixture(scope="module")
def recommending(tiny_dir: Path) -> Iterator[Server]:
    """A server whose checkpoint wants greedy sampling with a penalty, and at most 6 tokens."""
    defaults = SamplingDefaults(temperature=0.0, repetition_penalty=1.8, max_new_tokens=6)
    config = EngineConfig(model_dir=tiny_dir, num_kv_blocks=64)
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with (
        Engine(config, tokenizer=tokenizer) as engine,
        serving(engine, tiny_dir, defaults=defaults) as running,
    ):
        yield running


def ids(server: Server, **body: object) -> list[int]:
    reply = server.complete(prompt=[5, 6, 7], ignore_eos=True, return_token_ids=True, **body)
    assert reply.status_code == 200, reply.text
    found: list[int] = reply.json()["choices"][0]["token_ids"]
    return found


def test_a_request_that_says_nothing_is_sampled_by_the_defaults(
    recommending: Server, server: Server
) -> None:
    wanted = ids(server, temperature=0, repetition_penalty=1.8, max_tokens=6)
    assert ids(recommending) == ids(recommending) == wanted
    messages = [{"role": "user", "content": "x"}]
    chat = recommending.chat(messages=messages, ignore_eos=True).json()
    assert chat["usage"]["completion_tokens"] == 6


def test_what_a_request_says_goes_before_the_defaults(recommending: Server, server: Server) -> None:
    said = {"temperature": 1.0, "repetition_penalty": 1.0, "seed": 4, "max_tokens": 5}
    assert ids(recommending, **said) == ids(server, **said)
    assert ids(recommending, repetition_penalty=1.0, max_tokens=5) == ids(
        server, temperature=0, max_tokens=5
    )


def test_no_request_gets_more_than_the_limit_of_the_file(recommending: Server) -> None:
    assert len(ids(recommending, max_tokens=50)) == 6
    assert refusal(recommending.complete(prompt="x", min_tokens=9))["param"] == "min_tokens"
