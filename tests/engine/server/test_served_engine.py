"""One engine as its server sees it: in this process, and through a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.engine import Engine
from engine.server.front.messages import FromFront, OutputRow, Outputs, Submit, ToFront, WireError
from engine.server.served import ServedEngine
from engine.spec.config import EngineConfig
from engine.spec.errors import (
    EngineError,
    PolicyError,
    QueueFullError,
    RankError,
    RequestError,
)
from engine.spec.request import (
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)
from engine.spec.settings import Caps, Settings
from engine.text.tokenizer import Tokenizer
from tests.contracts.served_engine import (
    MAX_NUM_SEQS,
    MAX_QUEUE,
    ServedEngineContract,
    read,
    submit,
    text_of,
)
from tests.engine.configs import policy_with
from tests.engine.server.front.remote_pair import RemotePair, remote_pair
from tests.waiting import wait_until


def _engine(tiny_dir: Path, tokenizer: Tokenizer | None) -> Engine:
    caps = Caps(max_num_seqs=MAX_NUM_SEQS, max_queue=MAX_QUEUE)
    return Engine(
        EngineConfig(model_dir=tiny_dir, num_kv_blocks=512, settings=Settings(caps=caps)),
        tokenizer=tokenizer,
    )


class TestInThisProcess(ServedEngineContract):
    @pytest.fixture
    def served(self, tiny_dir: Path) -> Iterator[ServedEngine]:
        with _engine(tiny_dir, Tokenizer.from_dir(tiny_dir)) as engine:
            yield engine


class TestThroughASocket(ServedEngineContract):
    @pytest.fixture
    def served(self, tiny_dir: Path) -> Iterator[ServedEngine]:
        tokenizer = Tokenizer.from_dir(tiny_dir)
        with _engine(tiny_dir, None) as engine, remote_pair(engine, tokenizer) as pair:
            yield pair.remote


@pytest.fixture
def pair(tiny_dir: Path) -> Iterator[RemotePair]:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with _engine(tiny_dir, None) as engine, remote_pair(engine, tokenizer) as running:
        yield running


def test_text_is_the_same_on_both_sides_of_a_socket(tiny_dir: Path, pair: RemotePair) -> None:
    seeds = range(6)
    with _engine(tiny_dir, Tokenizer.from_dir(tiny_dir)) as engine:
        here = [read(submit(engine, temperature=1.0, seed=s, stop=("a", "e"))[1]) for s in seeds]
    there = [read(submit(pair.remote, temperature=1.0, seed=s, stop=("a", "e"))[1]) for s in seeds]
    assert [text_of(outputs) for outputs in there] == [text_of(outputs) for outputs in here]
    for ours, theirs in zip(here, there, strict=True):
        assert [output.token_ids for output in theirs] == [output.token_ids for output in ours]
        assert theirs[-1].finish_reason == ours[-1].finish_reason


def test_a_policy_changed_by_someone_else_is_seen_soon(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with (
        _engine(tiny_dir, None) as engine,
        remote_pair(engine, tokenizer) as one,
        remote_pair(engine, tokenizer) as other,
    ):
        policy = policy_with(engine.policy, threshold_tokens=99, version=1)
        one.remote.apply(policy)
        wait_until(lambda: other.remote.policy == policy)


def test_a_front_that_goes_leaves_no_sequence_behind(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with (
        _engine(tiny_dir, None) as engine,
        remote_pair(engine, tokenizer) as gone,
        remote_pair(engine, tokenizer) as stays,
    ):
        lost = [submit(gone.remote, max_tokens=400)[1] for _ in range(2)]
        kept = submit(stays.remote, max_tokens=100)[1]
        for outputs in lost:
            outputs.get(timeout=30)
        gone.front_socket.shutdown(socket.SHUT_RDWR)
        assert len(read(kept)) == 100
        assert gone.gateway.has_ended.wait(30)
        wait_until(lambda: engine.stats().running == 0)
        assert engine.stats().finished[FinishReason.ABORT] == 2


def test_when_the_engine_goes_waiting_calls_and_streams_end_with_an_error(
    tiny_dir: Path,
) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with _engine(tiny_dir, None) as engine, remote_pair(engine, tokenizer) as pair:
        _, outputs = submit(pair.remote, max_tokens=400)
        outputs.get(timeout=30)
        pair.gateway.close()
        last = read(outputs)[-1]
        assert last.finish_reason is FinishReason.ERROR
        assert last.error == "the engine's process is gone"
        assert not pair.remote.is_healthy
        with pytest.raises(RankError, match="is gone"):
            pair.remote.stats()
        with pytest.raises(RankError, match="is gone"):
            submit(pair.remote)


def test_a_request_to_a_closed_engine_is_refused_as_unhealthy(tiny_dir: Path) -> None:
    engine = _engine(tiny_dir, None)
    engine.start()
    with remote_pair(engine, Tokenizer.from_dir(tiny_dir)) as pair:
        engine.close()
        with pytest.raises(RankError, match="it is closed"):
            submit(pair.remote)


def test_a_request_that_cannot_be_sent_is_refused_and_leaves_nothing_behind(
    tiny_dir: Path,
) -> None:
    heard: list[RequestOutput] = []
    sampling = SamplingParams(stop=("\ud800",))
    request = Request(request_id="r", prompt_ids=(5,), sampling=sampling)
    tokenizer = Tokenizer.from_dir(tiny_dir)
    with _engine(tiny_dir, None) as engine, remote_pair(engine, tokenizer) as pair:
        with pytest.raises(RequestError, match="cannot be sent"):
            pair.remote.submit(request, heard.append)
        pair.gateway.close()
    assert not heard


def test_a_loop_that_turns_answers_the_engines_pings(pair: RemotePair) -> None:
    async def serve() -> None:
        pair.remote.say_ready()
        while not pair.gateway.num_pongs:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(serve(), 30))


@pytest.mark.parametrize(
    "error",
    [
        QueueFullError("full"),
        RequestError("too long"),
        PolicyError("outside", needs="restart"),
        RankError("died", rank=3),
        EngineError("something"),
    ],
)
def test_an_error_crosses_the_wire_with_its_kind_and_fields(error: EngineError) -> None:
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(WireError.of(error)), type=WireError)
    found = wire.to_error()
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_a_bug_crosses_the_wire_as_a_bug() -> None:
    found = WireError.of(KeyError("x")).to_error()
    assert type(found) is RuntimeError
    assert "KeyError" in str(found)


ids = st.integers(0, 2**31 - 1)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 100),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, 100),
    logit_bias=st.lists(st.tuples(ids, st.floats(-100, 100)), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
)
requests = st.builds(
    Request,
    request_id=st.text(),
    prompt_ids=st.lists(ids, min_size=1, max_size=50).map(tuple),
    sampling=samplings,
    deadline_s=st.none() | st.floats(0, 1e9),
)
entries = st.builds(
    TokenLogprobs,
    token_id=ids,
    logprob=st.floats(-100, 0),
    rank=ids,
    top=st.lists(st.tuples(ids, st.floats(-100, 0)), max_size=3).map(tuple),
)
rows = st.builds(
    OutputRow,
    number=ids,
    token_ids=st.lists(ids, max_size=1).map(tuple),
    token_s=st.floats(0, 1e9),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    scheduled_s=st.none() | st.floats(0, 1e9),
    error=st.none() | st.text(),
    logprobs=st.lists(entries, max_size=1).map(tuple),
    prompt_logprobs=st.lists(entries, max_size=3).map(tuple),
)


@given(requests)
def test_a_request_crosses_the_wire_unchanged(request: Request) -> None:
    message = Submit(number=1, request=request)
    assert _round_trip(message, FromFront) == message


@given(st.lists(rows, max_size=5))
def test_outputs_cross_the_wire_unchanged(rows: list[OutputRow]) -> None:
    message = Outputs(rows=rows)
    assert _round_trip(message, ToFront) == message


def _round_trip(message: object, kind: object) -> object:
    decode: Callable[[bytes], object] = msgspec.msgpack.Decoder(kind).decode
    return decode(msgspec.msgpack.encode(message))
