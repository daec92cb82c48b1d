"""What an engine counts about itself: always on, cheap, read by metrics and the cost model."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from engine.nvml.reading import DeviceReading
from engine.scheduler.step import SchedulerCounts
from engine.spec.admission import Refusal
from engine.spec.measurement import RequestTiming
from engine.spec.modes import BASE, ENDS, Mode
from engine.spec.request import FinishReason
from engine.spec.steps import StepSample, size_class

T = TypeVar("T")
# About 18 MB, where nobody asks for them.
MAX_SAMPLES = 20_000
# Token stamps that all requests together may keep: about 10 MB. An agent asks for them every
# second.
MAX_STAMPS = 250_000
# Work of the host may run behind a step in flight; the other parts are the step itself.
HOST_PARTS = ("schedule", "input", "output")
PARTS = ("schedule", "input", "forward", "communication", "sample", "output")


class PromptSource(StrEnum):
    """Where the KV of a prompt's tokens came from, in vLLM's words."""

    COMPUTE = "local_compute"
    CACHE = "local_cache_hit"


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """One reading of the engine's gauges and counters (counters since start).

    ``time_share`` gives each part's seconds over all parts' seconds, 0..1. ``step_tokens`` counts
    steps by their tokens, rounded up to a power of two; ``step_tokens_sum`` adds the exact ones.
    ``exposed_seconds`` are those of each part that no step in flight covered. ``prefix_queries``
    counts tokens of prompts looked up in the prefix cache, ``prefix_hits`` those found; whoever is
    computed again finds itself there, and is not counted again. ``non_finite_logits``
    counts requests that ended because there was no finite logit to choose a token by. ``held`` of
    the ``waiting`` are in the lobby, where they stay until the ranks have changed.
    ``prompt_tokens_by_source`` has the prompts of requests that have begun to run.
    ``num_kv_blocks`` are those of all replicas, of ``block_size`` tokens each. ``devices`` are the
    ranks' devices, as far as a driver tells of them. ``refused`` are requests that could have run
    and were turned away, ``admitted_rps`` the most that are let in (None: no limit).
    """

    running: int
    waiting: int
    kv_usage: float
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    finished: dict[FinishReason, int]
    steps: dict[Mode, int]
    step_seconds: dict[Mode, float]
    mode_switches: int
    decode_tokens_in_base: int
    time_share: dict[str, float]
    restarts: int
    is_healthy: bool
    policy_version: int
    step_tokens: dict[int, int] = field(default_factory=dict)
    step_tokens_sum: int = 0
    exposed_seconds: dict[str, float] = field(default_factory=dict)
    busy_seconds: float = 0.0
    bubble_seconds: float = 0.0
    regret_seconds: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    non_finite_logits: int = 0
    held: int = 0
    prompt_tokens_by_source: dict[PromptSource, int] = field(default_factory=dict)
    num_kv_blocks: int = 0
    block_size: int = 0
    devices: tuple[DeviceReading, ...] = ()
    refused: dict[Refusal, int] = field(default_factory=dict)
    admitted_rps: float | None = None

    @property
    def bubble_ratio(self) -> float:
        """Share 0..1 of the time with work that the ranks spent waiting for the host."""
        whole = self.busy_seconds + self.bubble_seconds
        return self.bubble_seconds / whole if whole else 0.0


@dataclass
class Telemetry:
    """Counters of one replica, written by its loop thread only."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    restarts: int = 0
    mode_switches: int = 0
    decode_tokens_in_base: int = 0
    finished: Counter[FinishReason] = field(default_factory=Counter)
    steps: Counter[Mode] = field(default_factory=Counter)
    step_tokens: Counter[int] = field(default_factory=Counter)
    step_tokens_sum: int = 0
    step_seconds: defaultdict[Mode, float] = field(default_factory=lambda: defaultdict(float))
    part_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    exposed_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    busy_seconds: float = 0.0
    bubble_seconds: float = 0.0
    regret_seconds: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    non_finite_logits: int = 0
    prompt_tokens_by_source: Counter[PromptSource] = field(default_factory=Counter)
    samples: deque[StepSample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    timings: KeptTimings = field(default_factory=lambda: KeptTimings(MAX_STAMPS))
    _last_mode: Mode | None = None

    def record_step(self, sample: StepSample) -> None:
        """Count one finished step."""
        mode = sample.shape.mode
        self.steps[mode] += 1
        self.step_tokens[size_class(sample.shape.num_tokens)] += 1
        self.step_tokens_sum += sample.shape.num_tokens
        self.step_seconds[mode] += sample.step_s
        if mode == BASE:
            self.decode_tokens_in_base += sample.shape.num_decode_tokens
        if self._last_mode not in (None, mode):
            self.mode_switches += 1
        self._last_mode = mode
        for part in PARTS:
            self.part_seconds[part] += getattr(sample, f"{part}_s")
            exposed = f"{part}_exposed_s" if part in HOST_PARTS else f"{part}_s"
            self.exposed_seconds[part] += getattr(sample, exposed)
        self.busy_seconds += sample.busy_s
        self.bubble_seconds += sample.bubble_s
        self.regret_seconds += sample.regret_s
        self.samples.append(sample)

    def record_counts(self, new: SchedulerCounts) -> None:
        """Add what the scheduler counted since the last call."""
        self.preemptions += new.preemptions

    def record_begin(self, *, prompt_tokens: int, cached: int, is_looked_up: bool) -> None:
        """Count the prompt of a request that has entered its first step; ``is_looked_up``: in the
        prefix cache.

        Computing it again, after a preemption or on other ranks, does not count.
        """
        cached = min(cached, prompt_tokens)
        if is_looked_up:
            self.prefix_queries += prompt_tokens
            self.prefix_hits += cached
        self.prompt_tokens_by_source[PromptSource.CACHE] += cached
        self.prompt_tokens_by_source[PromptSource.COMPUTE] += prompt_tokens - cached

    def record_finish(self, reason: FinishReason, timing: RequestTiming) -> None:
        """Count one request that ended."""
        self.finished[reason] += 1
        self.timings.add(timing)


def summarise(
    readings: Iterable[Telemetry],
    *,
    running: int,
    waiting: int,
    kv_usage: float,
    is_healthy: bool,
    policy_version: int,
    held: int = 0,
    num_kv_blocks: int = 0,
    block_size: int = 0,
    devices: tuple[DeviceReading, ...] = (),
    refused: dict[Refusal, int] | None = None,
    admitted_rps: float | None = None,
) -> EngineStats:
    """Add up the replicas' counters."""
    parts = list(readings)
    # The ends of the ladder always, so that dashboards find them; other rungs once a step has run
    # there.
    modes = list(dict.fromkeys([*ENDS, *(mode for t in parts for mode in list(t.steps))]))
    part_seconds = {name: sum(t.part_seconds[name] for t in parts) for name in PARTS}
    whole = sum(part_seconds.values())
    return EngineStats(
        running=running,
        waiting=waiting,
        kv_usage=kv_usage,
        prompt_tokens=sum(t.prompt_tokens for t in parts),
        generation_tokens=sum(t.generation_tokens for t in parts),
        preemptions=sum(t.preemptions for t in parts),
        finished={reason: sum(t.finished[reason] for t in parts) for reason in FinishReason},
        steps={mode: sum(t.steps[mode] for t in parts) for mode in modes},
        step_seconds={mode: sum(t.step_seconds.get(mode, 0.0) for t in parts) for mode in modes},
        mode_switches=sum(t.mode_switches for t in parts),
        decode_tokens_in_base=sum(t.decode_tokens_in_base for t in parts),
        time_share={name: s / whole if whole else 0.0 for name, s in part_seconds.items()},
        restarts=sum(t.restarts for t in parts),
        is_healthy=is_healthy,
        policy_version=policy_version,
        step_tokens=dict(sum((t.step_tokens.copy() for t in parts), Counter())),
        step_tokens_sum=sum(t.step_tokens_sum for t in parts),
        exposed_seconds={name: sum(t.exposed_seconds[name] for t in parts) for name in PARTS},
        busy_seconds=sum(t.busy_seconds for t in parts),
        bubble_seconds=sum(t.bubble_seconds for t in parts),
        regret_seconds=sum(t.regret_seconds for t in parts),
        prefix_queries=sum(t.prefix_queries for t in parts),
        prefix_hits=sum(t.prefix_hits for t in parts),
        non_finite_logits=sum(t.non_finite_logits for t in parts),
        held=held,
        prompt_tokens_by_source={
            source: sum(t.prompt_tokens_by_source[source] for t in parts) for source in PromptSource
        },
        num_kv_blocks=num_kv_blocks,
        devices=devices,
        block_size=block_size,
        refused=refused or {},
        admitted_rps=admitted_rps,
    )


class KeptTimings:
    """Timings of ended requests until somebody asks for them. Any thread may add and ask.

    The oldest are dropped when all together have more than ``max_stamps`` tokens. Requests differ
    in length, so a limit on their number would not bound memory.
    """

    def __init__(self, max_stamps: int) -> None:
        self._max_stamps = max_stamps
        self._timings: deque[RequestTiming] = deque()
        self._num_stamps = 0
        self._lock = threading.Lock()

    def add(self, timing: RequestTiming) -> None:
        with self._lock:
            self._timings.append(timing)
            self._num_stamps += _size(timing)
            while self._num_stamps > self._max_stamps:
                self._num_stamps -= _size(self._timings.popleft())

    def drain(self) -> list[RequestTiming]:
        """All of them, oldest first; none is left."""
        with self._lock:
            found, self._timings, self._num_stamps = [*self._timings], deque(), 0
        return found


def _size(timing: RequestTiming) -> int:
    """Its stamps; one without tokens takes some room, too."""
    return max(1, timing.output_tokens)


def drain(queue: deque[T]) -> list[T]:
    """Everything in ``queue``, emptied without losing what another thread appends meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]
