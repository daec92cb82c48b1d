"""A run in outline: one replica's steps in stretches, within which nothing changes.

Requests come as the workload says, wait for a row if all are taken, and are computed chunk by chunk
beside the decodes; steps take as long as their work does. So bursts, runs that end before a queue
has grown, and caps that keep requests waiting show as they are. Steps of a stretch are alike: every
sequence has the mean context, and what comes during a stretch is seen at its end.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.settings import Order, Settings
from engine.spec.steps import StepShape
from tuner.search.surrogate import Load

FloatArray = npt.NDArray[np.float64]
# More requests than this tell little more about how combinations compare.
MOST_REQUESTS = 200
# Chunks are timed at multiples of this.
CHUNK = 32
# How often a chunk is cut to bring its step within the limit on its time; then it counts as within.
NUM_CUTS = 3


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Seconds of each request, in any order, and of ``gaps_s`` between tokens, ``gap_counts`` of
    each. ``most_active`` is the most rows that were in use at once, ``most_tokens`` the largest
    step; ``waits`` says that some request waited for a row, ``is_cut`` that a step was full."""

    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray
    gaps_s: FloatArray
    gap_counts: FloatArray
    span_s: float
    output_tokens: int
    most_active: int
    most_tokens: int
    waits: bool
    is_cut: bool

    @property
    def throughput_tokens_per_s(self) -> float:
        return self.output_tokens / max(self.span_s, 1e-9)


@dataclass(kw_only=True)
class StepTimes:
    """Seconds of steps under one plan and rule of modes, by decodes and prompt tokens."""

    settings: Settings
    load: Load
    timer: StepTimer
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    def seconds(self, decodes: int, prompt: int) -> float:
        """From one step's begin to the next one's, on the slowest stage."""
        key = decodes, -(-prompt // CHUNK)
        if key not in self._known:
            shape = self._shape(decodes, min(prompt, CHUNK * key[1]) if prompt else 0)
            self._known[key] = self.timer.host_seconds(shape) + max(self.timer.stage_seconds(shape))
        return self._known[key]

    def _shape(self, decodes: int, prompt: int) -> StepShape:
        load = self.load
        context = round(load.mean_input_tokens + load.mean_output_tokens / 2)
        length = max(1, round(load.mean_input_tokens))
        prompts = math.ceil(prompt / length) if prompt else 0
        return StepShape(
            mode=ModeChooser.of(self.settings).choose(decodes + prompt, 0),
            num_seqs=decodes + prompts,
            num_decode_tokens=decodes,
            decode_context_tokens=decodes * context,
            num_prefill_tokens=prompt,
            prefill_context_tokens=prompt,
            prefill_attention_pairs=prompt * (min(prompt, length) + 1) // 2,
            num_sampled=decodes + prompts,
        )


def outline(settings: Settings, load: Load, times: StepTimes) -> Outline:
    """The first requests of ``load`` under ``settings``, dealt to replicas in turn."""
    workload, dp = load.workload, settings.plan.dp
    count = min(len(workload), MOST_REQUESTS)
    inputs = workload.input_tokens[:count].tolist()
    outputs = workload.output_tokens[:count].tolist()
    clients = None if workload.closed is None else workload.closed.concurrency
    replicas = []
    for number in range(min(dp, count)):
        mine = range(number, count, dp)
        arrivals = [0.0] * len(mine) if clients else workload.arrival_s[number:count:dp].tolist()
        at_once = None if clients is None else max(1, len(range(number, clients, dp)))
        replica = _Replica(
            settings=settings,
            times=times,
            arrivals=arrivals,
            inputs=[inputs[i] for i in mine],
            outputs=[outputs[i] for i in mine],
            clients=at_once,
        )
        replica.run()
        replicas.append(replica)
    return _joined(replicas)


def _joined(replicas: list[_Replica]) -> Outline:
    ttft_s = np.concatenate([np.subtract(r.first_s, r.arrivals) for r in replicas])
    e2e_s = np.concatenate([np.subtract(r.end_s, r.arrivals) for r in replicas])
    outputs = np.concatenate([r.outputs for r in replicas])
    several = outputs > 1
    gaps = [gap for r in replicas for gap in r.gaps] or [(0.0, 1.0)]
    begin_s = min(r.arrivals[0] for r in replicas)
    return Outline(
        ttft_s=ttft_s,
        tpot_s=(e2e_s - ttft_s)[several] / (outputs[several] - 1),
        e2e_s=e2e_s,
        gaps_s=np.array([gap_s for gap_s, _ in gaps]),
        gap_counts=np.array([number for _, number in gaps]),
        span_s=max(max(r.end_s) for r in replicas) - begin_s,
        output_tokens=int(outputs.sum()),
        most_active=max(r.most_active for r in replicas),
        most_tokens=max(r.most_tokens for r in replicas),
        waits=any(r.waits for r in replicas),
        is_cut=any(r.is_cut for r in replicas),
    )


class _Replica:
    """One replica's run. Time stands still while requests join; then a stretch of steps passes."""

    def __init__(
        self,
        *,
        settings: Settings,
        times: StepTimes,
        arrivals: list[float],
        inputs: list[int],
        outputs: list[int],
        clients: int | None,
    ) -> None:
        caps = settings.caps
        self._rows, self._budget = caps.max_num_seqs, caps.max_num_batched_tokens
        self._limit_s = math.inf if caps.max_step_ms is None else caps.max_step_ms / 1e3
        self._stages = settings.plan.pp
        self._is_shortest = settings.order is Order.SHORTEST_PROMPT
        self._times, self._inputs = times, inputs
        self.arrivals, self.outputs = arrivals, outputs
        self.first_s, self.end_s = [0.0] * len(inputs), [0.0] * len(inputs)
        self.gaps: list[tuple[float, float]] = []
        self.most_active = self.most_tokens = 0
        self.waits = self.is_cut = False
        self._now_s, self._sent = 0.0, 0
        # In a closed loop, clients send when they have their answer.
        self._can_send = len(inputs) if clients is None else min(clients, len(inputs))
        self._is_closed = clients is not None
        self._waiting: list[tuple[int, int]] = []
        self._prompts: deque[list[int]] = deque()  # number, tokens left
        self._prompt_tokens = 0
        self._decoded = 0.0  # by every sequence that decodes all along
        self._decodes: list[tuple[float, int]] = []  # what ``_decoded`` is at its end, number

    def run(self) -> None:
        """Until every request has ended."""
        while True:
            self._let_join()
            if self._prompts or self._decodes:
                self._pass()
            elif self._sent < self._can_send:
                self._now_s = max(self._now_s, self.arrivals[self._sent])
            else:
                return

    def _let_join(self) -> None:
        while self._sent < self._can_send and self.arrivals[self._sent] <= self._now_s:
            rank = self._inputs[self._sent] if self._is_shortest else self._sent
            heapq.heappush(self._waiting, (rank, self._sent))
            self._sent += 1
        while self._waiting and len(self._prompts) + len(self._decodes) < self._rows:
            _, number = heapq.heappop(self._waiting)
            self._prompts.append([number, self._inputs[number]])
            self._prompt_tokens += self._inputs[number]
        self.waits |= bool(self._waiting)
        self.most_active = max(self.most_active, len(self._prompts) + len(self._decodes))

    def _pass(self) -> None:
        """Take as many equal steps as nothing changes in."""
        decodes = -(-len(self._decodes) // self._stages)
        chunk, step_s = self._chunk(decodes)
        steps = math.inf
        if chunk:
            steps = 1 if chunk == self._prompt_tokens else max(1, self._prompts[0][1] // chunk)
        if self._decodes:
            left = self._decodes[0][0] - self._decoded
            steps = min(steps, max(1, math.floor(left * self._stages + 1e-6)))
        if self._sent < self._can_send and not self._waiting:
            coming_s = self.arrivals[self._sent] - self._now_s
            steps = min(steps, max(1, math.ceil(coming_s / step_s)))
        count = int(steps)
        self._now_s += count * step_s
        if self._decodes:
            self.gaps.append((step_s * self._stages, count * decodes))
            self._decoded += count / self._stages
        self._end_decodes()
        if chunk:
            self._end_prompts(min(count * chunk, self._prompt_tokens), step_s)

    def _chunk(self, decodes: int) -> tuple[int, float]:
        """Prompt tokens of the next step, and its seconds."""
        room = max(1, self._budget - decodes)
        chunk = min(room, self._prompt_tokens)
        self.is_cut |= self._prompt_tokens > room
        self.most_tokens = max(self.most_tokens, decodes + chunk)
        step_s = self._times.seconds(decodes, chunk)
        for _ in range(NUM_CUTS):
            if step_s <= self._limit_s or chunk <= CHUNK:
                break
            chunk = max(CHUNK, int(chunk * self._limit_s / step_s))
            step_s = self._times.seconds(decodes, chunk)
        return chunk, step_s

    def _end_decodes(self) -> None:
        while self._decodes and self._decodes[0][0] <= self._decoded + 1e-6:
            self._end(heapq.heappop(self._decodes)[1])

    def _end_prompts(self, tokens: int, step_s: float) -> None:
        self._prompt_tokens -= tokens
        while tokens and self._prompts:
            done = min(tokens, self._prompts[0][1])
            self._prompts[0][1] -= done
            tokens -= done
            if self._prompts[0][1]:
                return
            number, _ = self._prompts.popleft()
            # A prompt passes the other stages, too.
            self.first_s[number] = self._now_s + (self._stages - 1) * step_s
            if self.outputs[number] > 1:
                end = self._decoded + self.outputs[number] - 1
                heapq.heappush(self._decodes, (end, number))
            else:
                self._end(number)

    def _end(self, number: int) -> None:
        self.end_s[number] = max(self._now_s, self.first_s[number])
        if self._is_closed and self._can_send < len(self.arrivals):
            self.arrivals[self._can_send] = self._now_s
            self._can_send += 1
