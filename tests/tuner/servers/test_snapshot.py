"""Pages of metrics as servers write them, and what happened between two."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tuner.launch.command import System
from tuner.servers.series import VLLM
from tuner.servers.snapshot import PageError, between, read_page

EDGES_S = (0.1, 0.29, 1.0)


def vllm_page(
    *, finished: int, running: int = 0, ttft_s: float = 0.2, is_old: bool = False, engines: int = 1
) -> str:
    """A page as vLLM's own metrics library writes it, of this release or one before 1.0."""
    registry, names = CollectorRegistry(), ("model_name", "engine")
    itl = "time_per_output_token_seconds" if is_old else "inter_token_latency_seconds"
    kv = "gpu_cache_usage_perc" if is_old else "kv_cache_usage_perc"
    gauges = {
        name: Gauge(f"vllm:{name}", name, names, registry=registry)
        for name in ("num_requests_running", "num_requests_waiting", kv)
    }
    counters = {
        name: Counter(f"vllm:{name}", name, names, registry=registry)
        for name in ("prompt_tokens", "generation_tokens")
    }
    ended = Counter("vllm:request_success", "x", (*names, "finished_reason"), registry=registry)
    seconds = {
        name: Histogram(f"vllm:{name}", name, names, buckets=EDGES_S, registry=registry)
        for name in ("time_to_first_token_seconds", itl)
    }
    for engine in map(str, range(engines)):
        gauges["num_requests_running"].labels("m", engine).set(running)
        gauges["num_requests_waiting"].labels("m", engine).set(0)
        gauges[kv].labels("m", engine).set(0.25)
        counters["prompt_tokens"].labels("m", engine).inc(10 * finished)
        counters["generation_tokens"].labels("m", engine).inc(4 * finished)
        ended.labels("m", engine, "length").inc(finished - finished // 4)
        ended.labels("m", engine, "error").inc(finished // 4)
        for histogram in seconds.values():
            for _ in range(finished):
                histogram.labels("m", engine).observe(ttft_s)
    return generate_latest(registry).decode()


def test_a_page_is_read_by_our_words() -> None:
    found = read_page(vllm_page(finished=8, running=3), System.VLLM)
    assert found.counters["finished"] == 8
    assert found.counters["failed"] == 2
    assert found.gauges["running"] == 3
    assert found.arrived_total == 11
    ttft = found.histograms["ttft_ms"]
    assert ttft.edges == (100.0, 290.0, 1000.0)
    assert ttft.counts == (0.0, 8.0, 0.0, 0.0)
    assert ttft.total == pytest.approx(1600.0)
    assert "tpot_ms" in found.missing(System.VLLM)
    assert found.lacks(System.VLLM) == ()


def test_the_newest_names_are_those_of_a_real_server() -> None:
    """As vLLM 0.32.0 on a CPU wrote them; the share of prefix hits is of releases before 1.0."""
    real = set(Path(__file__).with_name("vllm_0_32_names.txt").read_text().split())
    plain = {**VLLM.counters, **VLLM.gauges}
    newest = {names[0] for word, names in plain.items() if word != "prefix_hit_rate"}
    buckets = {f"{names[0]}_bucket" for names in (*VLLM.seconds.values(), *VLLM.lengths.values())}
    assert newest | buckets <= real


def test_names_of_earlier_releases_are_known() -> None:
    found = read_page(vllm_page(finished=8, is_old=True), System.VLLM)
    assert found.gauges["kv_usage"] == 0.25
    assert found.histograms["itl_ms"].count == 8


def test_engines_of_one_server_are_summed_and_their_shares_averaged() -> None:
    found = read_page(vllm_page(finished=4, running=2, engines=3), System.VLLM)
    assert (found.counters["finished"], found.gauges["running"]) == (12, 6)
    assert found.gauges["kv_usage"] == pytest.approx(0.25)
    assert found.histograms["ttft_ms"].count == 12


def test_other_ranks_of_sglang_are_not_counted_twice() -> None:
    page = "".join(
        f'sglang:num_running_reqs{{model_name="m",tp_rank="{rank}"}} 5\n'
        f'sglang:num_queue_reqs{{model_name="m",tp_rank="{rank}"}} 2\n'
        for rank in (0, 1)
    )
    page += 'sglang:num_requests_total{model_name="m"} 7\n'
    page += 'sglang:token_usage{model_name="m"} 0.5\n'
    found = read_page(page, System.SGLANG)
    assert found.arrived_total == 14
    assert found.lacks(System.SGLANG) == ()


def test_a_window_is_what_came_between_two_pages() -> None:
    before = read_page(vllm_page(finished=8, running=3), System.VLLM)
    now = read_page(vllm_page(finished=12, running=1), System.VLLM)
    window = between(before, now, window_s=5.0)
    assert window is not None
    assert (window.arrived, window.finished, window.failed) == (2.0, 4.0, 1.0)
    assert window.mean_lengths == (10.0, 4.0)
    assert window.ttft_ms is not None
    assert window.ttft_ms.counts == (0.0, 4.0, 0.0, 0.0)


def test_counters_that_fell_are_a_server_that_began_anew() -> None:
    before = read_page(vllm_page(finished=8), System.VLLM)
    assert between(before, read_page(vllm_page(finished=2), System.VLLM), window_s=5.0) is None
    # As many requests, but other latencies: the same counters by chance.
    same = read_page(vllm_page(finished=8, ttft_s=0.05), System.VLLM)
    assert between(before, same, window_s=5.0) is None


def test_another_page_has_nothing_of_the_system() -> None:
    found = read_page("# TYPE up gauge\nup 1\n", System.VLLM)
    assert set(found.lacks(System.VLLM)) == {"finished", "running", "waiting"}


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running{ 1",
        "vllm:num_requests_running x",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running -1",
        'vllm:time_to_first_token_seconds_bucket{le="x"} 1',
        "vllm:time_to_first_token_seconds_bucket 1",
        'vllm:time_to_first_token_seconds_bucket{le="1"} 5\n'
        'vllm:time_to_first_token_seconds_bucket{le="2"} 3',
    ],
)
def test_a_page_of_impossible_numbers_is_told(line: str) -> None:
    with pytest.raises(PageError):
        read_page(f"{line}\n", System.VLLM)


@settings(max_examples=40)
@given(text=st.text(max_size=200), line=st.text(alphabet='vl:m_{}="0 1.eNa\\\n#TYPE', max_size=80))
def test_any_text_is_read_or_refused(text: str, line: str) -> None:
    try:
        found = read_page(f"{text}\nvllm:{line}\n", System.VLLM)
    except PageError:
        return
    assert all(0 <= value < math.inf for value in found.counters.values())
