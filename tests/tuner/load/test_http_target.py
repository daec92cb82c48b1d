"""The HTTP load target against this project's server and against other servers' habits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from engine.engine import Engine
from engine.models.create import create_model
from engine.server.app import create_server
from engine.server.keys import ServerKeys
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.measurement import Outcome
from engine.spec.settings import Caps, Settings
from engine.text.tokenizer import Tokenizer
from tests.contracts.load_target import Call, LoadTargetContract
from tests.servers import serve
from tests.tuner.engines import ConstantTimer
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.load.served_model import find_settings, get_served_model
from tuner.spec.errors import LoadError
from tuner.workload.parse import parse_workload

KEY = "secret"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A paced engine with a real tokenizer."""
    folder: Path = tmp_path_factory.mktemp("http") / "model"
    create_model(folder, preset="tiny", seed=0)
    config = EngineConfig(
        model_dir=folder,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=512,
        settings=Settings(caps=Caps(max_num_seqs=32, max_num_batched_tokens=256)),
    )
    tokenizer = Tokenizer.from_dir(folder)
    with Engine(config, tokenizer=tokenizer, timer_factory=ConstantTimer) as running:
        yield running


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    tokenizer = Tokenizer.from_dir(engine.config.model_dir)
    with serve(
        create_server(engine, tokenizer, model_name="tiny", keys=ServerKeys(api=KEY))
    ) as address:
        yield address


def test_an_address_needs_no_scheme(url: str) -> None:
    bare = url.removeprefix("http://")
    assert get_served_model(bare, api_key=KEY) == get_served_model(f"{url}/v1/", api_key=KEY)


class TestHttpTarget(LoadTargetContract):
    @pytest.fixture
    def target(self, url: str) -> Iterator[HttpTarget]:
        with HttpTarget(url, "tiny", api_key=KEY) as running:
            yield running

    def test_the_server_says_which_model_it_serves(self, url: str, engine: Engine) -> None:
        served = get_served_model(url + "/v1/", api_key=KEY)
        assert served.name == "tiny"
        assert served.max_model_len == engine.max_model_len

    def test_an_engine_of_ours_tells_its_settings_and_others_do_not(
        self, url: str, engine: Engine
    ) -> None:
        assert find_settings(url, api_key=KEY) == engine.policy.settings
        assert find_settings(url, api_key="wrong") is None
        assert find_settings(f"{url}/elsewhere") is None

    def test_a_wrong_key_is_an_error_in_the_servers_words(self, url: str) -> None:
        with HttpTarget(url, "tiny", api_key="wrong") as target:
            ending = Call(target, 1).wait()
        assert ending.outcome is Outcome.ERRORED
        assert "401" in str(ending.error)
        with pytest.raises(LoadError, match=r"401 Unauthorized: the key that was given is not its"):
            get_served_model(url, api_key="wrong")
        with pytest.raises(LoadError, match="it asks for a key; give its key by GEARSHIFT_ENGINE"):
            get_served_model(url)

    def test_a_workload_runs_over_http_and_the_server_ends_up_idle(
        self, url: str, engine: Engine, target: HttpTarget
    ) -> None:
        workload = parse_workload("poisson:rate=40,input=20,output=6,seconds=1", seed=1)
        measurement = run_load(workload, target, seed=0, timeout_s=30, vocab_size=256)
        assert measurement.count(Outcome.COMPLETED) == len(workload)
        assert all(t.output_tokens == 6 for t in measurement.timings)
        assert all((t.ttft_ms or 0) > 0 for t in measurement.timings)
        assert engine.stats().running == engine.stats().waiting == 0


class OtherServer:
    """Streams ``tokens`` in the form of servers that send neither token ids nor usage per chunk."""

    def __init__(self, *, tokens_per_chunk: int = 1, has_usage: bool = True) -> None:
        self._tokens_per_chunk = tokens_per_chunk
        self._has_usage = has_usage
        self.app = FastAPI()
        self.app.post("/v1/completions")(self._complete)

    async def _complete(self, http: Request) -> Any:
        body = await http.json()
        if body["prompt"][0] == 0:
            return JSONResponse({"error": {"message": "no zeros here"}}, status_code=422)
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        wanted = body["max_tokens"]
        yield b": a comment\r\n\r\n"
        for start in range(0, wanted, self._tokens_per_chunk):
            await asyncio.sleep(0.005)
            if body["prompt"][0] == 1 and start:
                yield b'data: {"error": {"message": "out of luck"}}\r\n\r\n'
                return
            if body["prompt"][0] == 2 and start:
                return
            is_last = start + self._tokens_per_chunk >= wanted
            choice = {"index": 0, "text": "ab", "finish_reason": "length" if is_last else None}
            raw = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\r\n\r\n"
            # In two network writes: events need not end where reads end.
            yield raw[:9]
            yield raw[9:]
        if self._has_usage:
            usage = {"choices": [], "usage": {"completion_tokens": wanted}}
            yield b"data: " + json.dumps(usage).encode() + b"\r\n\r\n"
        yield b"data: [DONE]\r\n\r\n"


def ask(url: str, *, first_id: int = 9) -> Call:
    """One request for 12 tokens; its first prompt id tells :class:`OtherServer` how to behave."""
    with HttpTarget(url, "other") as target:
        call = Call(target, 1, tokens=12, first_id=first_id)
        call.wait()
        return call


def test_chunks_without_token_ids_count_one_each() -> None:
    with serve(OtherServer(has_usage=False).app) as url:
        call = ask(url)
    assert call.endings[0].outcome is Outcome.COMPLETED
    assert len(call.stamps) == 12


def test_usage_corrects_chunks_that_hold_several_tokens_and_divides_their_gaps() -> None:
    with serve(OtherServer(tokens_per_chunk=4).app) as url:
        call = ask(url)
    assert len(call.stamps) == 12
    assert call.stamps == sorted(call.stamps)
    gaps = [b - a for a, b in zip(call.stamps[4:8], call.stamps[5:9], strict=True)]
    assert gaps[0] == pytest.approx(gaps[1])


@pytest.mark.parametrize(
    ("first_id", "words"),
    [(0, "422"), (1, "out of luck"), (2, "without a finish_reason")],
)
def test_a_failure_before_or_inside_the_stream_is_an_error(first_id: int, words: str) -> None:
    with serve(OtherServer().app) as url:
        ending = ask(url, first_id=first_id).endings[0]
    assert ending.outcome is Outcome.ERRORED
    assert words in str(ending.error)


class ScriptedServer:
    """Streams the same chunks to whoever asks."""

    def __init__(self, *chunks: dict[str, Any]) -> None:
        self._chunks = chunks
        self.app = FastAPI()
        self.app.post("/v1/completions")(self._complete)

    async def _complete(self) -> StreamingResponse:
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            await asyncio.sleep(0.005)
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def choice(text: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def test_chunks_of_nulls_hold_no_tokens_and_do_no_harm() -> None:
    nulls = {"choices": None, "usage": None, "error": None}
    chunks = (nulls, choice(None), choice("a"), choice("b"), choice(None, "length"))
    usage = {"choices": None, "usage": {"completion_tokens": None}}
    with serve(ScriptedServer(*chunks, usage).app) as url:
        call = ask(url)
    assert call.endings[0].outcome is Outcome.COMPLETED
    assert len(call.stamps) == 2


@pytest.mark.parametrize("told", [0, -7, 10**12])
def test_a_usage_that_cannot_be_does_not_undo_the_tokens_that_came(told: int) -> None:
    chunks = (choice("a"), choice("b"), choice("c", "length"))
    usage = {"choices": [], "usage": {"completion_tokens": told}}
    with serve(ScriptedServer(*chunks, usage).app) as url, HttpTarget(url, "other") as target:
        call = Call(target, 1, tokens=3)
        assert call.wait().outcome is Outcome.COMPLETED
        assert len(call.stamps) == 3
        assert target.num_wrong_usages == 1


def test_nothing_listening_is_an_error_and_not_a_crash() -> None:
    with serve(OtherServer().app) as url:
        pass
    assert ask(url).endings[0].outcome is Outcome.ERRORED
    with pytest.raises(LoadError, match="no answer"):
        get_served_model(url)


def test_a_server_of_another_kind_is_called_that() -> None:
    app = FastAPI()
    app.get("/v1/models")(lambda: {"hello": "world"})
    with serve(app) as url, pytest.raises(LoadError, match="right server"):
        get_served_model(url)
