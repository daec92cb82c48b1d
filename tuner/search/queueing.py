"""What queueing alone says of settings under a workload: the physical part of the surrogate.

One replica is a line of prompts, first come, first served (Lindley's recursion over the workload's
own arrivals, so that bursts, and queues that only grow, count as they are). Its decodes take their
share of every step. How many requests are active, how long a step of that many decodes takes, and
how long they stay follow from each other; a few rounds settle that. If more would be active than
the caps allow, requests also wait for a seat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from tuner.workload.workload import Workload

FloatArray = npt.NDArray[np.float64]
ROUNDS = 8
# A replica that prefills a larger share of the time than this leaves decodes hardly a step.
MOST_BUSY = 0.95


@dataclass(frozen=True, kw_only=True)
class Queueing:
    """One settings' estimate: ``metrics`` in the SLA's words, and what drove them.

    ``busy`` is the share of time that prompts take, ``active`` how many requests a replica decodes
    at once, ``waiting`` how many wait in its queue on average.
    """

    metrics: dict[str, float]
    busy: float
    active: float
    waiting: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the requests ask of ``replicas`` replicas with ``most`` seats each.

    ``prefill_s`` is each prompt by itself, ``step_s`` a step of so many decodes.
    """

    prefill_s: FloatArray
    outputs: FloatArray
    step_s: Callable[[float], float]
    replicas: int
    most: int

    def stay_s(self, decode_s: float, busy: float) -> FloatArray:
        """How long each request decodes while prompts take the share ``busy`` of the time."""
        return decode_s * (self.outputs - 1) / (1 - busy)


@dataclass(frozen=True, kw_only=True)
class _Balance:
    """Where a replica settles, and how long each request waits there before its prompt begins."""

    active: float
    decode_s: float
    busy: float
    wait_s: FloatArray


def estimate_queueing(settings: Settings, workload: Workload, timer: StepTimer) -> Queueing:
    """The estimate for every request of ``workload``, in about a millisecond."""
    plan, caps = settings.plan, settings.caps
    inputs = workload.input_tokens.astype(np.float64)
    outputs = workload.output_tokens.astype(np.float64)
    chooser = ModeChooser.of(settings)
    prefill_s = _prefill_s(timer, chooser, inputs, caps.max_num_batched_tokens)
    work = _Work(
        prefill_s=prefill_s,
        outputs=outputs,
        step_s=_step_timer(timer, chooser, float((inputs + outputs / 2).mean())),
        replicas=plan.dp,
        most=min(caps.max_num_seqs, caps.max_num_batched_tokens),
    )
    closed, times = workload.closed, workload.arrival_s
    if closed is None:
        balance = _open_balance(work, times)
    else:
        balance = _closed_balance(work, closed.concurrency / plan.dp)
    decode_s, wait_s = balance.decode_s, balance.wait_s
    stay_s = work.stay_s(decode_s, balance.busy)
    ttft_s = wait_s + prefill_s + (decode_s if balance.active > 1 else 0.0)
    e2e_s = ttft_s + stay_s
    if closed is None:
        end_s = float((times + e2e_s).max() - times[0])
        waiting = float(wait_s.sum()) / plan.dp / max(end_s, 1e-9)
    else:
        end_s = float(e2e_s.mean()) * len(inputs) / closed.concurrency
        waiting = float(wait_s.mean() / e2e_s.mean()) * (closed.concurrency / plan.dp)
    tpot_s = (stay_s / np.maximum(outputs - 1, 1))[outputs > 1]
    chunk_s = _prefill_s(timer, chooser, np.array([inputs.mean()]), caps.max_num_batched_tokens)[0]
    metrics = {
        **_percentiles("ttft_ms", ttft_s),
        **_percentiles("tpot_ms", tpot_s if len(tpot_s) else np.array([decode_s])),
        **_percentiles("e2e_ms", e2e_s),
        # One gap in so many has a prompt in its step.
        "p95_itl_ms": 1e3 * (decode_s + (float(chunk_s) if balance.busy > 0.05 else 0.0)),
        "throughput_tokens_per_s": float(outputs.sum()) / max(end_s, 1e-9),
    }
    return Queueing(
        metrics=metrics,
        busy=balance.busy,
        active=balance.active,
        waiting=waiting,
        prefill_s=float(prefill_s.mean()),
        decode_s=decode_s,
    )


def _open_balance(work: _Work, times: FloatArray) -> _Balance:
    """Requests arrive at ``times``, whether or not earlier ones have ended."""
    prefill_s, replicas = work.prefill_s, work.replicas
    span_s = max(float(times[-1] - times[0]), 1e-9)
    busy = min(MOST_BUSY, float(prefill_s.sum()) / replicas / span_s)
    active = 1.0
    for _ in range(ROUNDS):
        decode_s = work.step_s(active)
        stay_s = work.stay_s(decode_s, busy)
        line_s = prefill_s + decode_s * (active > 1)
        wait_s = _waits(times, line_s, replicas)
        whole_s = max(span_s, float((times + wait_s + line_s + stay_s).max() - times[0]))
        wanted = float((prefill_s + stay_s).sum()) / replicas / whole_s
        if wanted > work.most:
            wait_s = np.maximum(wait_s, _waits(times, (line_s + stay_s) / work.most, replicas))
        active = 0.5 * active + 0.5 * min(work.most, max(1.0, wanted))
    return _Balance(active=active, decode_s=decode_s, busy=busy, wait_s=wait_s)


def _closed_balance(work: _Work, clients: float) -> _Balance:
    """Each replica has ``clients``, which send their next request when the last one has ended."""
    active = min(work.most, clients)
    decode_s = work.step_s(active)
    prompts_s = float(work.prefill_s.mean()) * clients
    round_s = prompts_s + float(work.stay_s(decode_s, 0.0).mean())
    busy = min(MOST_BUSY, prompts_s / round_s)
    wait_s = _behind_others(work.prefill_s, clients)
    return _Balance(active=active, decode_s=decode_s, busy=busy, wait_s=wait_s)


def _percentiles(metric: str, seconds: FloatArray) -> dict[str, float]:
    values = np.percentile(seconds, (50, 95, 99))
    named = zip(("p50", "p95", "p99"), values, strict=True)
    return {f"{name}_{metric}": 1e3 * max(float(value), 1e-6) for name, value in named}


def _waits(times: FloatArray, work_s: FloatArray, replicas: int) -> FloatArray:
    """How long each arrival waits for the work before it, requests dealt to replicas in turn."""
    waits = np.zeros(len(times))
    for replica in range(min(replicas, len(times))):
        mine = slice(replica, None, replicas)
        before = np.concatenate(([0.0], np.cumsum(work_s[mine])[:-1]))
        free = before + np.maximum.accumulate(times[mine] - before)
        waits[mine] = free - times[mine]
    return waits


def _behind_others(prefill_s: FloatArray, clients: float) -> FloatArray:
    """The wait behind others in a closed loop: the first requests of all clients wait in one line,
    later ones seldom meet."""
    waits = np.zeros(len(prefill_s))
    first = min(len(prefill_s), max(1, round(clients)))
    waits[:first] = np.concatenate(([0.0], np.cumsum(prefill_s[:first])[:-1]))
    return waits


def _step_timer(timer: StepTimer, chooser: ModeChooser, context: float) -> Callable[[float], float]:
    """Seconds of a step of so many decodes."""

    def step_s(num_seqs: float) -> float:
        count = max(1, round(num_seqs))
        shape = StepShape(
            mode=chooser.choose(count, 0),
            num_seqs=count,
            num_decode_tokens=count,
            decode_context_tokens=round(count * context),
            num_sampled=count,
        )
        return timer.host_seconds(shape) + max(timer.stage_seconds(shape))

    return step_s


def _prefill_s(
    timer: StepTimer, chooser: ModeChooser, inputs: FloatArray, budget: int
) -> FloatArray:
    """Seconds of each prompt by itself, in steps of at most ``budget`` tokens; between a few
    lengths, straight lines."""
    low, high = float(inputs.min()), float(inputs.max())
    lengths = np.unique(np.linspace(low, high, 5 if high > low else 1).round())
    seconds = [_one_prompt_s(timer, chooser, int(length), budget) for length in lengths]
    return np.asarray(np.interp(inputs, lengths, seconds), dtype=np.float64)


def _one_prompt_s(timer: StepTimer, chooser: ModeChooser, length: int, budget: int) -> float:
    seconds, done = 0.0, 0
    while done < length:
        chunk = min(budget, length - done)
        shape = StepShape(
            mode=chooser.choose(chunk, 0),
            num_seqs=1,
            num_prefill_tokens=chunk,
            prefill_context_tokens=done + chunk,
            prefill_attention_pairs=chunk * done + chunk * (chunk + 1) // 2,
            num_sampled=1,
        )
        stages = timer.stage_seconds(shape)
        # A prompt passes every stage; the next chunk follows when the first stage is free.
        seconds += timer.host_seconds(shape) + (sum(stages) if done == 0 else max(stages))
        done += chunk
    return seconds
