"""What settings would do by arithmetic alone: step times, utilisation, a simple queue.

No request is simulated: one steady state of a replica is solved from its step times. It is good
enough to say which combinations are worth a simulation, and costs less than a millisecond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.measurement import Fidelity
from engine.spec.settings import Order, Settings
from engine.spec.steps import StepShape
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tuner.search.surrogate import Load

NUM_ROUNDS = 24
NORMAL_P95 = 1.645
# Mean of a reflected random walk over its time, in deviations of its end: 2/3 * sqrt(2 / pi).
WALK_MEAN = 0.53
# Share of a run's requests ahead of which a percentile lies, from the exponential tail of a queue.
TAIL = {"p50": 0.7, "p90": 2.3, "p95": 3.0, "p99": 4.6, "mean": 1.0, "max": 6.0}


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """A replica in the long run: seconds of a step, decodes and prompt tokens in it, and the share
    of its capacity that the load asks for (above 1: its queue grows)."""

    step_s: float
    num_decodes: float
    prompt_tokens: float
    utilisation: float
    period_s: float


def steady_state(settings: Settings, load: Load, timer: StepTimer) -> SteadyState:
    """Solved by iteration: the longer a step takes, the more has come meanwhile for the next."""
    caps, plan = settings.caps, settings.plan
    rate = (load.rate_rps / plan.dp) if not load.is_closed else math.inf
    clients = load.rate_rps / plan.dp if load.is_closed else math.inf
    tokens_in, tokens_out = load.mean_input_tokens, max(1.0, load.mean_output_tokens)
    most_decodes = max(
        1.0, min(caps.max_num_seqs, clients, caps.max_num_batched_tokens - 1) / plan.pp
    )
    period_s = _period(settings, load, timer, 1.0, 0.0)
    decodes = prompt = 0.0
    for _ in range(NUM_ROUNDS):
        wanted = min(rate, _closed_rate(clients, tokens_out, period_s)) * period_s
        decodes = min(most_decodes, 0.5 * decodes + 0.5 * wanted * tokens_out)
        prompt = min(
            max(1.0, caps.max_num_batched_tokens - decodes), 0.5 * prompt + 0.5 * wanted * tokens_in
        )
        period_s = _period(settings, load, timer, decodes, prompt)
    return SteadyState(
        step_s=period_s * plan.pp,
        num_decodes=decodes,
        prompt_tokens=prompt,
        utilisation=_utilisation(settings, load, timer, rate, most_decodes),
        period_s=period_s,
    )


def estimate(
    settings: Settings, load: Load, timer: StepTimer, sla: Sla, *, span_s: float
) -> OperatingPoint:
    """The point that the steady state makes likely: every latency that ``sla`` bounds, where the
    load lasts ``span_s``."""
    state = steady_state(settings, load, timer)
    budget = max(1.0, settings.caps.max_num_batched_tokens - state.num_decodes)
    lone_s = _prefill_s(settings, load, timer, budget, state)
    if load.is_closed:
        wait_s = _closed_wait_s(settings, load, timer, state) / TAIL["p95"]
    else:
        wait_s = _open_wait_s(settings, load, state, span_s)
    metrics = {}
    for constraint in sla.constraints:
        percentile, _, name = constraint.key.partition("_")
        tail = TAIL.get(percentile, 1.0)
        ttft_ms = 1e3 * (lone_s + wait_s * tail)
        tpot_ms = 1e3 * state.step_s * (1 + 0.1 * tail)
        found = {
            "ttft_ms": ttft_ms,
            "tpot_ms": tpot_ms,
            "itl_ms": tpot_ms,
            "e2e_ms": ttft_ms + tpot_ms * load.mean_output_tokens,
        }.get(name)
        if found is not None:
            metrics[constraint.key] = Estimate.exact(found)
    served = load.rate_rps / max(1.0, state.utilisation)
    if load.is_closed:
        served = settings.plan.dp * state.num_decodes / state.period_s / load.mean_output_tokens
    metrics["throughput_tokens_per_s"] = Estimate.exact(served * load.mean_output_tokens)
    return OperatingPoint(settings=settings, fidelity=Fidelity.PREDICTED, metrics=metrics)


def _period(
    settings: Settings, load: Load, timer: StepTimer, decodes: float, prompt: float
) -> float:
    """Seconds between two steps of one stage that compute so many decodes and prompt tokens."""
    num_decodes, num_prompt = round(decodes), round(prompt)
    shape = _shape(settings, load, max(num_decodes, 0 if num_prompt else 1), num_prompt)
    return timer.host_seconds(shape) + max(timer.stage_seconds(shape))


def _shape(settings: Settings, load: Load, decodes: int, prompt: int) -> StepShape:
    context = round(load.mean_input_tokens + load.mean_output_tokens / 2)
    length = max(1, round(load.mean_input_tokens))
    prompts = min(prompt, math.ceil(prompt / length)) if prompt else 0
    return StepShape(
        mode=ModeChooser.of(settings).choose(decodes + prompt, 0),
        num_seqs=decodes + prompts,
        num_decode_tokens=decodes,
        decode_context_tokens=decodes * context,
        num_prefill_tokens=prompt,
        prefill_context_tokens=prompt,
        prefill_attention_pairs=prompt * (min(prompt, length) + 1) // 2,
        num_sampled=decodes + prompts,
    )


def _closed_rate(clients: float, tokens_out: float, period_s: float) -> float:
    """Requests per second that so many clients send, each waiting for its answer."""
    return math.inf if math.isinf(clients) else clients / (tokens_out * period_s)


def _open_wait_s(settings: Settings, load: Load, state: SteadyState, span_s: float) -> float:
    """Mean seconds in the queue of a replica: of one server with this burstiness; near its limit no
    more than a random walk of ``span_s`` gets to, beyond it what the load is ahead by then."""
    service_s = state.utilisation * settings.plan.dp / load.rate_rps
    # Kingman: half the squared variations of gaps and of work.
    work_cv = max(0.0, load.p95_input_tokens / load.mean_input_tokens - 1) / NORMAL_P95
    spread = (work_cv**2 + load.gap_cv**2) / 2
    most_s = WALK_MEAN * math.sqrt(2 * spread * service_s * span_s)
    busy = min(state.utilisation, 1 - 1e-6)
    return min(most_s, service_s * spread * busy / (1 - busy)) + _excess_s(state, span_s)


def _excess_s(state: SteadyState, span_s: float) -> float:
    """Mean wait behind a queue that grows all the time."""
    return max(0.0, state.utilisation - 1) * span_s / TAIL["p95"]


def _closed_wait_s(settings: Settings, load: Load, timer: StepTimer, state: SteadyState) -> float:
    """Seconds that the last of all clients waits: all start at once, and those without a row wait
    for others to end."""
    clients = load.rate_rps / settings.plan.dp
    budget = settings.caps.max_num_batched_tokens
    rows = max(1.0, min(clients, settings.caps.max_num_seqs))
    first_s = rows * load.mean_input_tokens / budget * _period(settings, load, timer, 0.0, budget)
    return first_s + (clients - rows) / rows * load.mean_output_tokens * state.step_s


def _utilisation(
    settings: Settings, load: Load, timer: StepTimer, rate: float, most_decodes: float
) -> float:
    """Asked over possible: the largest of what decode rows and what computing allow."""
    if math.isinf(rate):
        return 0.9
    budget = settings.caps.max_num_batched_tokens
    share = load.mean_input_tokens / max(1.0, load.mean_output_tokens)
    # In a full steady step each decode goes with its share of prompt tokens.
    decodes = max(1.0, min(most_decodes, budget / (1 + share)))
    full_s = _period(settings, load, timer, decodes, min(budget - decodes, decodes * share))
    return float(rate * load.mean_output_tokens * full_s / decodes)


def _prefill_s(
    settings: Settings, load: Load, timer: StepTimer, budget: float, state: SteadyState
) -> float:
    """Seconds from a mean prompt's first chunk to its token, beside the decodes of the state."""
    chunks = max(1, math.ceil(load.mean_input_tokens / budget))
    chunk = load.mean_input_tokens / chunks
    limit_ms = settings.caps.max_step_ms
    period_s = _period(settings, load, timer, state.num_decodes, chunk)
    if limit_ms is not None and period_s > limit_ms / 1e3:
        chunks = math.ceil(chunks * period_s * 1e3 / limit_ms)
        period_s = limit_ms / 1e3
    order = 0.9 if settings.order is Order.SHORTEST_PROMPT else 1.0
    return (0.5 + chunks + settings.plan.pp - 1) * period_s * order
