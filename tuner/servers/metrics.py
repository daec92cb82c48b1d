"""What a server itself counted during a run: its ``/metrics``, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tuner.load.urls import is_secure, key_headers

TIMEOUT_S = 10.0
# Our names for the counters of serving systems.
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "requests": "vllm:request_success_total",
}
# Means of histograms, by seconds and count.
MEANS = {
    "mean_ttft_server_ms": "vllm:time_to_first_token_seconds",
    "mean_queue_ms": "vllm:request_queue_time_seconds",
    "mean_step_tokens": "vllm:iteration_tokens_total",
}
CACHE = "vllm:cache_config_info"
CACHE_LABELS = ("block_size", "num_gpu_blocks", "num_cpu_blocks")

Samples = Mapping[str, float]


def read_samples(url: str, *, api_key: str | None = None) -> tuple[Samples, dict[str, str]]:
    """Every sample of ``url/metrics`` by name, summed over labels, and labels of its KV cache.

    Empty if the server has no such page: its counts are reported, but never relied on.
    """
    try:
        answer = httpx.get(
            f"{url}/metrics",
            headers=key_headers(api_key),
            timeout=TIMEOUT_S,
            verify=is_secure(url),
        )
        text = answer.raise_for_status().text
        families = list(text_string_to_metric_families(text))
    except (httpx.HTTPError, ValueError):
        return {}, {}
    summed: dict[str, float] = {}
    cache: dict[str, str] = {}
    for sample in (sample for family in families for sample in family.samples):
        summed[sample.name] = summed.get(sample.name, 0.0) + sample.value
        if sample.name == CACHE:
            cache = {name: sample.labels[name] for name in CACHE_LABELS if name in sample.labels}
    return summed, cache


def between(before: Samples, after: Samples) -> dict[str, Any]:
    """What was counted from ``before`` to ``after``; only what the server has."""
    counted: dict[str, Any] = {
        word: round(after[name] - before.get(name, 0.0))
        for word, name in COUNTERS.items()
        if name in after
    }
    for word, name in MEANS.items():
        count = after.get(f"{name}_count", 0.0) - before.get(f"{name}_count", 0.0)
        if count > 0:
            total = after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)
            counted[word] = total / count * (1e3 if word.endswith("_ms") else 1.0)
    return counted
