"""What serving systems call the series of their ``/metrics``, by our words for them.

If a series had other names in other releases, the newest comes first. Sources: vLLM's metrics page
and its ``v1/metrics/loggers.py``, before 1.0 ``engine/metrics.py``; SGLang's production metrics
page and its ``srt/metrics/collector.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.launch.command import System

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Names of one system's series.

    ``counters`` only rise while the server runs, ``gauges`` are of now, ``seconds`` are histograms
    of seconds and ``lengths`` of tokens. ``needed``: without these a page tells no load.
    """

    prefix: str
    counters: Mapping[str, Names]
    gauges: Mapping[str, Names]
    seconds: Mapping[str, Names]
    lengths: Mapping[str, Names]
    needed: tuple[str, ...] = ("finished", "running", "waiting")

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that there may be a series for."""
        return (*self.counters, *self.gauges, *self.seconds, *self.lengths)


VLLM = Series(
    prefix="vllm:",
    counters={
        "finished": ("vllm:request_success_total",),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "generation_tokens": ("vllm:generation_tokens_total",),
        "preemptions": ("vllm:num_preemptions_total",),
        "prefix_queries": (
            "vllm:prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_queries_total",
        ),
        "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    },
    gauges={
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "prefix_hit_rate": ("vllm:gpu_prefix_cache_hit_rate",),
    },
    seconds={
        "ttft_ms": ("vllm:time_to_first_token_seconds",),
        "tpot_ms": ("vllm:request_time_per_output_token_seconds",),
        "itl_ms": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "e2e_ms": ("vllm:e2e_request_latency_seconds",),
    },
    lengths={
        "input": ("vllm:request_prompt_tokens",),
        "output": ("vllm:request_generation_tokens",),
    },
)
SGLANG = Series(
    prefix="sglang:",
    counters={
        "finished": ("sglang:num_requests_total",),
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "generation_tokens": ("sglang:generation_tokens_total",),
        "prefix_queries": ("sglang:prompt_tokens_total",),
        "prefix_hits": ("sglang:cached_tokens_total",),
    },
    gauges={
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_usage": ("sglang:token_usage",),
        "prefix_hit_rate": ("sglang:cache_hit_rate",),
    },
    seconds={
        "ttft_ms": ("sglang:time_to_first_token_seconds",),
        "tpot_ms": ("sglang:time_per_output_token_seconds",),
        "itl_ms": ("sglang:inter_token_latency_seconds",),
        "e2e_ms": ("sglang:e2e_request_latency_seconds",),
    },
    lengths={
        "input": ("sglang:prompt_tokens_histogram",),
        "output": ("sglang:generation_tokens_histogram",),
    },
)
SERIES = {System.VLLM: VLLM, System.SGLANG: SGLANG}
# Labels of ranks that report beside the first of their replica.
OTHER_RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")
# The label, and its value, by which vLLM marks requests that ended by an error.
REASON, ERROR = "finished_reason", "error"
