"""What the engine's server takes of a client, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from engine.server.keys import ServerKeys
from engine.server.limits import BURST_S, RateLimit
from engine.spec.limits import RequestLimits
from tests.contracts.bounded_server import KEY, BoundedServerContract, Start, read_json
from tests.engine.server.conftest import serving, simulated_engine


class TestTheEngineServerIsBounded(BoundedServerContract):
    post_path = "/v1/completions"
    get_path = "/v1/models"
    open_path = "/health"
    invalid_status = 400

    @pytest.fixture
    def start(self, tiny_dir: Path) -> Start:
        @contextmanager
        def start(limits: RequestLimits) -> Iterator[str]:
            with (
                simulated_engine(tiny_dir, step_s=0.001) as engine,
                serving(engine, tiny_dir, keys=ServerKeys(api=KEY), limits=limits) as server,
            ):
                yield server.url

        return start

    def code_of(self, answer: HTTPResponse) -> str:
        assert answer.headers["content-type"] == "application/json"
        return str(read_json(answer)["error"]["code"])


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_key_may_spend_what_it_saved_up_and_then_its_rate() -> None:
    clock = Clock()
    rate = RateLimit(2.0, clock)
    burst = int(2.0 * BURST_S)
    assert [rate.take("a") for _ in range(burst)] == [None] * burst
    assert rate.take("a") == 1
    assert rate.take("b") is None, "another key's requests are its own"
    clock.now_s = 0.5
    assert [rate.take("a"), rate.take("a")] == [None, 1]
    clock.now_s = 1e6
    assert [rate.take("a") for _ in range(burst)] == [None] * burst
    assert rate.take("a") == 1


def test_a_rate_of_zero_is_no_limit() -> None:
    rate = RateLimit(0.0)
    assert {rate.take("a") for _ in range(100)} == {None}
