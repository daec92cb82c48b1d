"""What a model would do on hardware that is not here: at a glance, or simulated.

The glance takes step times only and answers in milliseconds. It knows nothing of queueing, so it
is right where the load is steady and low; a simulation runs the whole scheduler.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from api.aside.process import AsideError, AsideLimits
from api.documents.places import is_name
from api.services.job_checks import require_all
from api.web.aside import Aside
from api.web.errors import ApiError
from engine.executors.protocol import StepTimer
from engine.spec.modes import BASE, Mode
from engine.spec.names import did_you_mean
from engine.spec.plan import parse_plan
from engine.spec.steps import StepShape
from policies.sla import Sla
from store.models.base import Json
from tuner.described.node import Node
from tuner.described.parse import check_served, describe_node
from tuner.hardware import parse_hardware
from tuner.spec.errors import TunerError
from tuner.work.models import find_model, list_models

LIMITS = AsideLimits(seconds=30.0, memory_mib=2048)
CANNOT = "this cannot be told"
ROUNDS = 40


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """Settings and a steady load: Poisson arrivals, all requests of one length (tokens)."""

    model: str
    hardware: str
    plan: str
    rate_rps: float
    input_tokens: int
    output_tokens: int
    sla: str
    backend: str | None = None
    dtype: str | None = None
    seconds: int = 60
    seed: int = 0

    @property
    def workload(self) -> str:
        """The load as a SPEC."""
        return (
            f"poisson:rate={self.rate_rps:g},input={self.input_tokens},"
            f"output={self.output_tokens},seconds={self.seconds}"
        )


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What step times alone say. ``running`` is None where no steady state exists: requests come
    faster than they can be served. ``decode_ms`` is by mode: running requests, step time."""

    ttft_ms: float
    tpot_ms: float | None
    running: float | None
    kv_tokens: int
    decode_ms: dict[str, list[tuple[int, float]]]


def node_of(asked: WhatIf) -> Node:
    """The model on its hardware.

    Raises:
        ApiError: 422 naming each field that cannot be read, or a plan that the backend cannot run.
    """
    require_all(
        [
            ("/model", lambda: _check_name(asked.model)),
            ("/hardware", lambda: parse_hardware(asked.hardware)),
            ("/plan", lambda: parse_plan(asked.plan)),
            ("/sla", lambda: Sla.parse(asked.sla)),
        ],
        CANNOT,
    )
    node = describe_node(
        model=asked.model, hardware=asked.hardware, dtype=asked.dtype, backend=asked.backend
    )
    require_all([("/plan", lambda: check_served(node, parse_plan(asked.plan).plan))], CANNOT)
    return node


def glance(asked: WhatIf) -> Glance:
    """The answer from step times.

    Raises:
        ApiError: 422 naming what cannot be read.
        EngineError, TunerError: a plan that does not fit the model or its devices.
    """
    node, plan = node_of(asked), parse_plan(asked.plan).plan
    timer = node.timer(plan)
    modes = plan.modes if plan.shift else (BASE,)
    context = asked.input_tokens + asked.output_tokens // 2
    prefill_s = min(_prefill_s(timer, mode, asked.input_tokens) for mode in modes)
    busy = asked.rate_rps / plan.dp * prefill_s

    def decode_s(running: int) -> float:
        return min(_decode_s(timer, mode, running, context) for mode in modes)

    running: float | None = 1.0
    for _ in range(ROUNDS):
        if busy >= 1 or running is None or running * context * plan.dp > 1e9:
            running = None
            break
        step_s = decode_s(max(1, round(running))) / (1 - busy)
        running = asked.rate_rps / plan.dp * asked.output_tokens * step_s
    kv_tokens = node.num_kv_blocks(plan) * node.block_size
    if running is not None and running * context > kv_tokens:
        running = None
    sizes = [2**power for power in range(9)]
    return Glance(
        ttft_ms=prefill_s * 1e3,
        tpot_ms=None if running is None else step_s * 1e3,
        running=None if running is None else running * plan.dp,
        kv_tokens=kv_tokens * plan.dp,
        decode_ms={
            str(mode): [(n, _decode_s(timer, mode, n, context) * 1e3) for n in sizes]
            for mode in modes
        },
    )


async def simulate(asked: WhatIf, aside: Aside) -> Json:
    """The simulation's document, from a process of its own.

    Raises:
        ApiError: 422, it cannot be simulated; 429, too many are simulated already.
    """
    node_of(asked)
    try:
        return await aside.run("what_if", {**asdict(asked), "workload": asked.workload}, LIMITS)
    except AsideError as error:
        raise ApiError(422, "cannot_predict", str(error)) from error


def _check_name(model: str) -> None:
    """A name of the catalog: no file is opened that a caller names."""
    if not is_name(model) or find_model(model) is None:
        known = list_models()
        raise TunerError(
            f"model {model!r}{did_you_mean(model, known)}: known are {', '.join(known)}"
        )


def _prefill_s(timer: StepTimer, mode: Mode, tokens: int) -> float:
    """One prompt alone, whole in one step."""
    shape = StepShape(
        mode=mode,
        num_seqs=1,
        num_prefill_tokens=tokens,
        prefill_attention_pairs=tokens * (tokens + 1) // 2,
        num_sampled=1,
    )
    return sum(timer.stage_seconds(shape)) + timer.host_seconds(shape)


def _decode_s(timer: StepTimer, mode: Mode, running: int, context_tokens: int) -> float:
    """One token for each of ``running`` requests."""
    shape = StepShape(
        mode=mode,
        num_seqs=running,
        num_decode_tokens=running,
        decode_context_tokens=running * context_tokens,
        num_sampled=running,
    )
    return sum(timer.stage_seconds(shape)) + timer.host_seconds(shape)
