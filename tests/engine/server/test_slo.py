"""Objectives in the headers of a request: read, refused, and counted by how the request ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.server.slo import Slo
from engine.spec.settings import Caps
from tests.engine.server.conftest import (
    MODEL,
    Server,
    refusal,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until

BODY = {"model": MODEL, "prompt": "x", "max_tokens": 4}


@pytest.fixture(scope="module")
def served(tiny_dir: Path) -> Iterator[Server]:
    """One row, one place in the queue, steps of 10 ms."""
    caps = Caps(max_num_seqs=1, max_queue=1)
    with (
        simulated_engine(tiny_dir, step_s=0.01, caps=caps) as engine,
        serving(engine, tiny_dir) as server,
    ):
        yield server


def _ask(server: Server, *, ttft_ms: object, tpot_ms: object = None, **body: object) -> int:
    """The status of a completion with an objective."""
    given = {"x-slo-ttft-ms": ttft_ms, "x-slo-tpot-ms": tpot_ms}
    headers = {name: str(value) for name, value in given.items() if value is not None}
    return server.http.post("/v1/completions", json=BODY | body, headers=headers).status_code


def _counted(server: Server) -> dict[tuple[str, str], float]:
    """Requests by class and outcome."""
    found = {}
    for family in text_string_to_metric_families(server.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "gearshift_slo_requests_total":
                found[sample.labels["class"], sample.labels["outcome"]] = sample.value
    return found


def test_requests_are_judged_by_the_very_bounds_they_name(served: Server) -> None:
    assert _ask(served, ttft_ms=4000, tpot_ms=490) == 200
    assert _ask(served, ttft_ms=4000, tpot_ms=201) == 200
    assert _ask(served, ttft_ms=1e6, tpot_ms=6) == 200  # steps take 10 ms
    assert _ask(served, ttft_ms=3, tpot_ms=1e6) == 200
    counted = _counted(served)
    assert counted["ttft<=5000,tpot<=500", "met"] == 2
    assert counted["ttft>10000,tpot<=10", "missed"] == 1
    assert counted["ttft<=50,tpot>500", "missed"] == 1


def test_one_token_has_no_time_per_output_token(served: Server) -> None:
    assert _ask(served, ttft_ms=None, tpot_ms=4, max_tokens=1) == 200
    assert _counted(served)["tpot<=5", "met"] == 1


def test_chats_and_every_choice_are_counted(served: Server) -> None:
    asked = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    headers = {"X-SLO-TTFT-MS": "900"}
    reply = served.http.post("/v1/chat/completions", json=asked | {"n": 2}, headers=headers)
    assert reply.status_code == 200
    assert _counted(served)["ttft<=1000", "met"] == 2


def test_what_fails_or_finds_no_room_is_a_miss_and_what_its_client_cuts_is_none(
    served: Server,
) -> None:
    headers = {"x-slo-ttft-ms": "2000"}
    long = BODY | {"max_tokens": 900, "ignore_eos": True, "stream": True}
    with (
        ThreadPoolExecutor() as pool,
        served.http.stream("POST", "/v1/completions", json=long, headers=headers) as leaving,
    ):
        lines = leaving.iter_lines()
        next(lines)
        assert _ask(served, ttft_ms=2000, timeout_ms=100) == 408
        waiting = pool.submit(_ask, served, ttft_ms=None)
        wait_until(lambda: served.engine.stats().waiting == 1)
        assert _ask(served, ttft_ms=2000) == 429
    assert waiting.result(timeout=30) == 200
    wait_until(lambda: _counted(served)["ttft<=2000", "cut"] == 1)
    counted = _counted(served)
    assert counted["ttft<=2000", "errored"] == 2
    assert counted["ttft<=2000", "met"] == 0


@pytest.mark.parametrize(
    "value", ["fast", "", "0", "-5", "nan", "inf", "1e12", "5,6", "1_000", "5e2"]
)
@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
def test_a_bound_that_is_none_is_refused_by_name_and_value(
    served: Server, name: str, value: str
) -> None:
    reply = served.http.post("/v1/completions", json=BODY, headers={name: value})
    error = refusal(reply)
    assert error["param"] == name
    assert error["message"].startswith(f"{name}: ")
    assert repr(value) in error["message"]


def test_without_an_objective_nothing_is_counted(served: Server) -> None:
    before = _counted(served)
    assert isinstance(served.complete(prompt="x", max_tokens=2), httpx.Response)
    assert _counted(served) == before


def test_clients_cannot_make_more_classes_than_the_page_says() -> None:
    asked = [None, *(1.07**power for power in range(-60, 200))]
    names = {Slo(ttft_ms=t, tpot_ms=p).class_name for t in asked for p in asked} - {""}
    assert len(names) == 89
