"""Prometheus text: the ``vllm:`` names dashboards already scrape, and ``gearshift_`` ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.replica.telemetry import EngineStats
from engine.server.device_metrics import device_families
from engine.server.served import ServedEngine
from engine.server.slo import Slo, SloOutcome
from engine.server.spans import CallSpan, EndedRequest
from engine.spec.request import FinishReason, Request, RequestOutput

LABELS = ("model_name", "engine")
SECONDS = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))
TOKENS = tuple(2**e for e in range(18))

Word = TypeVar("Word", bound=str)


class ServerMetrics:
    """The registry of one server: histograms it fills itself, the rest read from the engine."""

    def __init__(self, engine: ServedEngine, *, model_name: str, engine_name: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, engine_name)
        self._progress: dict[str, _Progress] = {}
        self._ttft_s = self._histogram("time_to_first_token_seconds", SECONDS)
        self._itl_s = self._histogram("inter_token_latency_seconds", SECONDS)
        self._tpot_s = self._histogram("request_time_per_output_token_seconds", SECONDS)
        self._e2e_s = self._histogram("e2e_request_latency_seconds", SECONDS)
        self._queue_s = self._histogram("request_queue_time_seconds", SECONDS)
        self._prefill_s = self._histogram("request_prefill_time_seconds", SECONDS)
        self._decode_s = self._histogram("request_decode_time_seconds", SECONDS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", TOKENS)
        self._generation_tokens = self._histogram("request_generation_tokens", TOKENS)
        self._slo_requests = Counter(
            "gearshift_slo_requests",
            "Requests with an objective of their own, by how they ended",
            (*LABELS, "class", "outcome"),
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(engine, self._labels))

    def observe(
        self,
        request: Request,
        output: RequestOutput,
        *,
        slo: Slo | None = None,
        span: CallSpan | None = None,
    ) -> None:
        """Take in one output of ``request`` (ttft.server.v1, itl.v1, tpot.v1, e2e.v1)."""
        progress = self._progress.setdefault(request.request_id, _Progress(request=request))
        if progress.scheduled_s is None:
            progress.scheduled_s = output.scheduled_s
        if output.token_ids:
            gap = progress.add(output)
            if gap is None:
                self._ttft_s.observe(output.token_s - request.arrival_s)
            else:
                self._itl_s.observe(gap)
        if output.finish_reason is not None:
            ended = self._progress.pop(request.request_id)
            self._finish(ended, output.finish_reason, slo)
            if span is not None:
                span.end_request(ended.end(output.finish_reason, output.token_s))

    def count_slo(self, slo: Slo, outcome: SloOutcome, *, num_requests: int = 1) -> None:
        """Count requests with the objective ``slo``."""
        labels = (*self._labels, slo.class_name)
        for other in SloOutcome:  # a ratio of them is zero, and not missing, before one was met
            self._slo_requests.labels(*labels, other.value)
        self._slo_requests.labels(*labels, outcome.value).inc(num_requests)

    def text(self) -> bytes:
        """The exposition of all metrics now."""
        return generate_latest(self.registry)

    def _finish(self, progress: _Progress, reason: FinishReason, slo: Slo | None) -> None:
        request = progress.request
        if slo is not None:
            outcome = slo.outcome(reason, ttft_s=progress.ttft_s, tpot_s=progress.tpot_s)
            self.count_slo(slo, outcome)
        self._prompt_tokens.observe(len(request.prompt_ids))
        self._generation_tokens.observe(progress.num_tokens)
        if not reason.is_whole:
            return  # no latency as a whole is told: it was cut
        if progress.scheduled_s is not None:
            self._queue_s.observe(progress.scheduled_s - request.arrival_s)
        if not progress.num_tokens:
            return
        self._e2e_s.observe(progress.last_s - request.arrival_s)
        self._decode_s.observe(progress.last_s - progress.first_s)
        if progress.scheduled_s is not None:
            self._prefill_s.observe(progress.first_s - progress.scheduled_s)
        if progress.tpot_s is not None:
            self._tpot_s.observe(progress.tpot_s)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}",
            name.replace("_", " ").capitalize(),
            LABELS,
            buckets=buckets,
            registry=self.registry,
        )
        return histogram.labels(*self._labels)


@dataclass(kw_only=True)
class _Progress:
    """Token stamps of one request so far, on the engine's clock."""

    request: Request
    num_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    scheduled_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.first_s - self.request.arrival_s if self.num_tokens else None

    @property
    def tpot_s(self) -> float | None:
        """None for fewer than two tokens."""
        if self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)

    def end(self, reason: FinishReason, now_s: float) -> EndedRequest:
        """Its life as spans tell it; without a token, it ended at ``now_s``."""
        has_tokens = self.num_tokens > 0
        return EndedRequest(
            arrival_s=self.request.arrival_s,
            scheduled_s=self.scheduled_s,
            first_s=self.first_s if has_tokens else None,
            last_s=self.last_s if has_tokens else now_s,
            output_tokens=self.num_tokens,
            reason=reason,
        )

    def add(self, output: RequestOutput) -> float | None:
        """Count the tokens of ``output``; the gap per token, None for the first one."""
        gap = None
        if self.num_tokens == 0:
            self.first_s = output.token_s
        else:
            gap = (output.token_s - self.last_s) / len(output.token_ids)
        self.last_s = output.token_s
        self.num_tokens += len(output.token_ids)
        return gap


class _EngineCollector(Collector):
    """Gauges and counters read from the engine at every scrape."""

    def __init__(self, engine: ServedEngine, labels: tuple[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield from self._vllm(stats)
        yield from self._gearshift(stats)
        yield from device_families(stats.devices, dict(zip(LABELS, self._labels, strict=True)))

    def _vllm(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("vllm:num_requests_running", "Sequences in the batch", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests waiting", stats.waiting)
        yield self._by(
            GaugeMetricFamily,
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting, by what they wait for",
            "reason",
            {"capacity": stats.waiting - stats.held, "deferred": stats.held},
        )
        yield self._cache_config(stats)
        yield self._gauge("vllm:kv_cache_usage_perc", "KV blocks in use, 0..1", stats.kv_usage)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens accepted", stats.prompt_tokens)
        yield self._by(
            CounterMetricFamily,
            "vllm:prompt_tokens_by_source",
            "Prompt tokens of requests that have begun to run, by where their KV came from",
            "source",
            stats.prompt_tokens_by_source,
        )
        yield self._counter("vllm:generation_tokens", "Tokens handed out", stats.generation_tokens)
        yield self._counter("vllm:num_preemptions", "Preemptions", stats.preemptions)
        yield self._counter(
            "vllm:prefix_cache_queries", "Prefix cache queries, tokens", stats.prefix_queries
        )
        yield self._counter(
            "vllm:prefix_cache_hits", "Prefix cache hits, tokens", stats.prefix_hits
        )
        yield self._by(
            CounterMetricFamily,
            "vllm:request_success",
            "Finished requests",
            "finished_reason",
            stats.finished,
        )
        yield self._iteration_tokens(stats)

    def _gearshift(self, stats: EngineStats) -> Iterator[Metric]:
        yield from self._of_door(stats)
        yield self._gauge("gearshift_policy_version", "Policy in force", stats.policy_version)
        yield from self._of_steps(stats)
        yield from self._of_time(stats)

    def _of_door(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._by(
            CounterMetricFamily,
            "gearshift_requests_refused",
            "Requests turned away although nothing was wrong with them",
            "reason",
            stats.refused,
        )
        yield self._gauge(
            "gearshift_admitted_requests_per_second",
            "The most requests that are let in; infinite: whatever comes",
            math.inf if stats.admitted_rps is None else stats.admitted_rps,
        )

    def _of_steps(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._by(CounterMetricFamily, "gearshift_steps", "Steps", "mode", stats.steps)
        yield self._by(
            CounterMetricFamily,
            "gearshift_step_seconds",
            "Seconds in steps",
            "mode",
            stats.step_seconds,
        )
        yield self._counter(
            "gearshift_decode_tokens_in_base",
            "Decode tokens that ran in base mode",
            stats.decode_tokens_in_base,
        )
        yield self._counter("gearshift_mode_switches", "Mode switches", stats.mode_switches)
        yield self._counter("gearshift_rank_restarts", "Restarts of failed ranks", stats.restarts)
        yield self._counter(
            "gearshift_non_finite_logits",
            "Requests ended because no logit was finite",
            stats.non_finite_logits,
        )

    def _of_time(self, stats: EngineStats) -> Iterator[Metric]:
        """Where the seconds of steps went."""
        yield self._by(
            GaugeMetricFamily,
            "gearshift_time_share_ratio",
            "Share of step time, 0..1",
            "part",
            stats.time_share,
        )
        yield self._by(
            CounterMetricFamily,
            "gearshift_exposed_seconds",
            "Seconds of each part that did not run behind a step in flight",
            "part",
            stats.exposed_seconds,
        )
        yield self._counter(
            "gearshift_bubble_seconds",
            "Seconds in which ranks waited for the host while there was work",
            stats.bubble_seconds,
        )
        yield self._gauge(
            "gearshift_bubble_ratio",
            "Share of the time with work that ranks waited for the host, 0..1",
            stats.bubble_ratio,
        )
        yield self._counter(
            "gearshift_mode_regret_seconds",
            "Seconds that the mode not chosen would have saved, by the mode table",
            stats.regret_seconds,
        )

    def _iteration_tokens(self, stats: EngineStats) -> Metric:
        family = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens per step", labels=LABELS
        )
        counts = stats.step_tokens
        cumulative = [
            (str(float(limit)), float(sum(n for size, n in counts.items() if size <= limit)))
            for limit in TOKENS
        ]
        buckets = [*cumulative, ("+Inf", float(sum(counts.values())))]
        family.add_metric(self._labels, buckets, sum_value=float(stats.step_tokens_sum))
        return family

    def _cache_config(self, stats: EngineStats) -> Metric:
        """The size of the KV cache, told by labels, as gateways know it from vLLM."""
        family = GaugeMetricFamily(
            "vllm:cache_config_info",
            "KV cache of all replicas: tokens of a block, and blocks",
            labels=(*LABELS, "block_size", "num_gpu_blocks"),
        )
        sizes = (str(stats.block_size), str(stats.num_kv_blocks))
        family.add_metric((*self._labels, *sizes), 1.0)
        return family

    def _by(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        text: str,
        label: str,
        values: Mapping[Word, float],
    ) -> Metric:
        """One value for each word of ``label``."""
        family = kind(name, text, labels=(*LABELS, label))
        for word, value in values.items():
            family.add_metric((*self._labels, str(word)), value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family
