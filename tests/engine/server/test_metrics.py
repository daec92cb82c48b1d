"""Prometheus text: every name the ecosystem scrapes, and values that follow the traffic."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.spec.plan import ParallelPlan
from tests.engine.server.conftest import (
    MODEL,
    Server,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until

GAUGES_AND_COUNTERS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prompt_tokens_by_source_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:request_success_total",
    "gearshift_steps_total",
    "gearshift_step_seconds_total",
    "gearshift_decode_tokens_in_base_total",
    "gearshift_mode_switches_total",
    "gearshift_policy_version",
    "gearshift_time_share_ratio",
)
HISTOGRAMS = (
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:iteration_tokens_total",
)


def _scrape(server: Server) -> dict[tuple[str, ...], float]:
    """Values by sample name and the labels other than model and engine."""
    reply = server.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == MODEL
            assert sample.labels.pop("engine") == "0"
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def wait_until_ended(server: Server, num_requests: int) -> None:
    name = "vllm:request_prompt_tokens_count"
    wait_until(lambda: _scrape(server)[name,] == num_requests)


@pytest.fixture(scope="module")
def scraped(tiny_dir: Path) -> dict[tuple[str, ...], float]:
    """The metrics after three requests of 3 prompt and 5 output tokens, one after another."""
    with (
        simulated_engine(tiny_dir, step_s=0.01) as engine,
        serving(engine, tiny_dir) as server,
    ):
        for _ in range(3):
            server.complete(prompt=[5, 6, 7], max_tokens=5)
        return _scrape(server)


def test_every_name_is_there(scraped: dict[tuple[str, ...], float]) -> None:
    names = {key[0] for key in scraped}
    assert not set(GAUGES_AND_COUNTERS) - names
    for name in HISTOGRAMS:
        assert {f"{name}_bucket", f"{name}_sum", f"{name}_count"} <= names


def test_counters_follow_the_traffic(scraped: dict[tuple[str, ...], float]) -> None:
    assert scraped["vllm:prompt_tokens_total",] == 9
    assert scraped["vllm:generation_tokens_total",] == 15
    assert scraped["vllm:request_success_total", "length"] == 3
    assert scraped["vllm:num_requests_running",] == 0
    assert scraped["vllm:iteration_tokens_total_count",] == 15
    assert scraped["vllm:iteration_tokens_total_sum",] == 3 * (3 + 4)
    assert scraped["vllm:iteration_tokens_total_bucket", "1.0"] == 12
    assert scraped["gearshift_steps_total", "shift"] == 15


def test_latencies_are_observed_once_per_request_or_gap(
    scraped: dict[tuple[str, ...], float],
) -> None:
    assert scraped["vllm:time_to_first_token_seconds_count",] == 3
    assert scraped["vllm:inter_token_latency_seconds_count",] == 12
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert scraped[f"vllm:{name}_seconds_count",] == 3
    ttft = scraped["vllm:time_to_first_token_seconds_sum",]
    parts = ("request_queue_time_seconds", "request_prefill_time_seconds")
    assert ttft == pytest.approx(sum(scraped[f"vllm:{part}_sum",] for part in parts))
    e2e = scraped["vllm:e2e_request_latency_seconds_sum",]
    assert e2e == pytest.approx(ttft + scraped["vllm:inter_token_latency_seconds_sum",])
    # Steps take at least 10 ms each; the first token's stamp may be late by less than one.
    assert scraped["vllm:request_decode_time_seconds_sum",] >= 3 * 3 * 0.01


def test_requests_that_were_cut_short_stay_out_of_the_latencies_of_whole_ones(
    tiny_dir: Path,
) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.05) as engine,  # 20 s: no request ends by itself
        serving(engine, tiny_dir) as server,
    ):
        body = {"model": MODEL, "prompt": "x", "max_tokens": 400, "stream": True}
        for _ in range(2):
            with server.http.stream("POST", "/v1/completions", json=body) as leaving:
                next(leaving.iter_lines())
        wait_until_ended(server, 2)
        num_late = 0
        while _scrape(server)["vllm:time_to_first_token_seconds_count",] < 3:
            num_late += 1  # once more, if there was no time for a first token
            server.complete(prompt="x", max_tokens=400, timeout_ms=300 * 3**num_late)
            wait_until_ended(server, 2 + num_late)
        server.complete(prompt="x", max_tokens=3)
        wait_until_ended(server, 3 + num_late)
        scraped = _scrape(server)
    for name in (
        "e2e_request_latency",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
        "request_time_per_output_token",
    ):
        assert scraped[f"vllm:{name}_seconds_count",] == 1
    assert scraped["vllm:time_to_first_token_seconds_count",] == 4
    assert scraped["vllm:request_success_total", "abort"] == 2
    assert scraped["vllm:request_success_total", "deadline"] == num_late


def test_gateways_read_the_size_of_the_kv_cache_of_all_replicas(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.001, plan=ParallelPlan(dp=2)) as engine,
        serving(engine, tiny_dir) as server,
    ):
        assert _scrape(server)["vllm:cache_config_info", "16", "2048"] == 1


def test_a_prompt_counts_once_by_where_its_kv_came_from(server: Server) -> None:
    prompt = [7] * 33  # two whole blocks and one token more
    before = _scrape(server)
    for _ in range(2):
        server.complete(prompt=prompt, max_tokens=2)
    after = _scrape(server)

    def added(source: str) -> float:
        key = ("vllm:prompt_tokens_by_source_total", source)
        return after[key] - before[key]

    assert added("local_cache_hit") == 32
    assert added("local_compute") == 34


def test_requests_that_no_replica_takes_are_deferred(tiny_dir: Path) -> None:
    engine = simulated_engine(tiny_dir, step_s=0.001)
    with serving(engine, tiny_dir) as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.complete, prompt="x", max_tokens=2)
        wait_until(lambda: engine.stats().waiting == 1)
        scraped = _scrape(server)
        engine.start()
        assert answer.result(timeout=30).is_success
        engine.close()
    assert scraped["vllm:num_requests_waiting",] == 1
    assert scraped["vllm:num_requests_waiting_by_reason", "deferred"] == 1
    assert scraped["vllm:num_requests_waiting_by_reason", "capacity"] == 0


def test_two_servers_in_one_process_do_not_share_metrics(tiny_dir: Path) -> None:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir) as one,
        serving(engine, tiny_dir) as other,
    ):
        one.complete(prompt="x", max_tokens=2)
        assert _scrape(one)["vllm:time_to_first_token_seconds_count",] == 1
        assert _scrape(other)["vllm:time_to_first_token_seconds_count",] == 0
