"""Where the time of single steps goes: in each mode, in each piece, and with each degree of TP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from engine.executors.protocol import StepTimer
from engine.spec.config import num_kv_blocks
from engine.spec.errors import EngineError
from engine.spec.modes import BASE, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from tuner.backends import PartedTimer, ServedTimer
from tuner.described.machine import Machine
from tuner.described.node import Node
from tuner.hardware.sampling import SampleKind, SamplerSpec, sample_s
from tuner.spec.errors import TunerError
from tuner.work.degrees import Degree, Scaling, Trick
from tuner.work.shapes import STEP_TOKENS, decode_shape, prompt_shape, step_shape
from tuner.workload.workload import Workload

# No machine is asked about more degrees than this.
MOST_DEGREE = 64
# Sequences of the step whose speed-up is told; fewer if some degree has no room for them.
STEP_SEQS = 64
PIECES = {
    "gemm": "products",
    "attention": "attention",
    "elementwise": "elementwise",
    "head": "head",
    "communication": "communication",
    "launch": "launch",
    "exposed": "host",
}


class StepSource(Protocol):
    """Step times of any plan of one model in one place.

    ``timer`` and ``kv_tokens`` raise EngineError or TunerError where the plan cannot run.
    """

    @property
    def num_devices(self) -> int: ...

    def timer(self, plan: ParallelPlan) -> PartedTimer: ...

    def kv_tokens(self, plan: ParallelPlan, caps: Caps) -> int:
        """Tokens of KV that one replica has room for."""
        ...

    def tricks(self, plan: ParallelPlan, shape: StepShape) -> tuple[Trick, ...]:
        """What is or could be hidden of a step, as far as it is known."""
        ...


@dataclass(frozen=True)
class NodeSteps:
    """Steps on described hardware."""

    node: Node

    @property
    def num_devices(self) -> int:
        return self.node.hardware.count

    def timer(self, plan: ParallelPlan) -> PartedTimer:
        return self.node.timer(plan)

    def kv_tokens(self, plan: ParallelPlan, caps: Caps) -> int:
        return self.node.num_kv_blocks(plan, caps) * self.node.block_size

    def tricks(self, plan: ParallelPlan, shape: StepShape) -> tuple[Trick, ...]:
        timer = self.node.timer(plan)
        if not isinstance(timer, ServedTimer):  # nothing is known of its host
            return ()
        return (self._one_step_ahead(timer, shape), self._parallel_sampling(plan, shape))

    def _one_step_ahead(self, timer: ServedTimer, shape: StepShape) -> Trick:
        host = self.node.backend.host
        hidden, shown = (
            step_s(timer.with_host(replace(host, is_overlapped=is_hidden)), shape)
            for is_hidden in (True, False)
        )
        return Trick(name="one step ahead", is_on=host.is_overlapped, gain=shown / hidden - 1)

    def _parallel_sampling(self, plan: ParallelPlan, shape: StepShape) -> Trick:
        """Sampling at a temperature, estimated from its traffic, on top of the step: what the
        profile of the host holds of it is not known. Both ways exchange as many logits."""
        device, model = self.node.hardware.device, self.node.model
        whole, shared = (
            sample_s(
                device,
                SamplerSpec(is_parallel=is_parallel).rows(shape.num_sampled, plan.stage_size),
                model.vocab_size,
                SampleKind.PLAIN,
            )
            for is_parallel in (False, True)
        )
        bare_s = step_s(self.node.timer(plan), shape)
        return Trick(
            name="parallel sampling",
            is_on=self.node.backend.samples_in_parallel,
            gain=(bare_s + whole) / (bare_s + shared) - 1,
        )


@dataclass(frozen=True, kw_only=True)
class MachineSteps:
    """Steps of our engine on this machine, as its cost model says."""

    machine: Machine
    num_devices: int

    def timer(self, plan: ParallelPlan) -> PartedTimer:
        machine = self.machine
        # Host time as it was exposed in service.
        return machine.step_model.timer(plan, machine.model, link=machine.config.link)

    def kv_tokens(self, plan: ParallelPlan, caps: Caps) -> int:
        config = replace(self.machine.config, envelope=caps)
        return num_kv_blocks(config, self.machine.model, plan) * config.block_size

    def tricks(self, plan: ParallelPlan, shape: StepShape) -> tuple[Trick, ...]:
        """The engine at hand has both; what steps would take without was not timed."""
        del plan, shape
        return (
            Trick(name="one step ahead", is_on=True, gain=None),
            Trick(name="parallel sampling", is_on=self.machine.config.parallel_sampling, gain=None),
        )


def step_s(timer: StepTimer, shape: StepShape) -> float:
    """Seconds of a step alone."""
    return sum(timer.stage_seconds(shape)) + timer.host_seconds(shape)


def steps_json(source: StepSource, settings: Settings, workload: Workload) -> dict[str, Any]:
    """Step times of ``settings`` by mode and by piece, and how TP scales under ``workload``."""
    load = _MeanRequest.of(workload)
    timer = source.timer(settings.plan.replica)
    return {
        "plan": settings.plan_text,
        "modes": _modes_json(timer, settings),
        "pieces": [_piece_json(timer, *step) for step in _told_steps(settings, load)],
        "scaling": find_scaling(source, settings.caps, load).to_json(),
    }


@dataclass(frozen=True, kw_only=True)
class _MeanRequest:
    """Tokens of a mean request, rounded."""

    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, workload: Workload) -> _MeanRequest:
        return cls(
            input_tokens=max(1, round(float(np.mean(workload.input_tokens)))),
            output_tokens=max(1, round(float(np.mean(workload.output_tokens)))),
        )

    @property
    def context_tokens(self) -> int:
        """KV of a request half-way through its output."""
        return self.input_tokens + self.output_tokens // 2


def _modes_json(timer: StepTimer, settings: Settings) -> dict[str, Any] | None:
    """Milliseconds of the ranks over step sizes; None where steps have one mode only."""
    modes, caps = settings.modes, settings.caps
    if len(modes) < 2:
        return None
    sizes = [n for n in STEP_TOKENS if n <= max(caps.max_num_batched_tokens, STEP_TOKENS[0])]
    return {
        "tokens": sizes,
        "ms": {
            mode: [
                1e3 * sum(timer.stage_seconds(step_shape(n, caps.max_num_seqs, mode)))
                for n in sizes
            ]
            for mode in modes
        },
        "threshold_tokens": settings.threshold_tokens if settings.is_by_threshold else None,
        "rung_thresholds": dict(settings.rung_thresholds) if settings.is_by_threshold else {},
    }


def _told_steps(settings: Settings, load: _MeanRequest) -> Iterator[tuple[str, Mode, StepShape]]:
    caps = settings.caps
    seqs = min(STEP_SEQS, caps.max_num_seqs)
    tokens = min(load.input_tokens, caps.max_num_batched_tokens)
    modes = settings.modes if settings.plan.shift else (BASE,)
    for mode in modes:
        name = f" in {mode}" if len(modes) > 1 else ""
        decode = decode_shape(seqs, load.context_tokens, mode)
        yield f"decode of {seqs}{name}", mode, decode
        yield f"prompt of {tokens}{name}", mode, prompt_shape(tokens, mode)


def _piece_json(timer: PartedTimer, name: str, mode: Mode, shape: StepShape) -> dict[str, Any]:
    found = timer.breakdown(shape)
    pieces = {word: 1e3 * getattr(found, f"{part}_s") for part, word in PIECES.items()}
    return {"step": name, "mode": mode, "ms": pieces, "step_ms": sum(pieces.values())}


def find_scaling(source: StepSource, caps: Caps, load: _MeanRequest) -> Scaling:
    """What each degree of TP up to all devices brings."""
    degrees = [2**i for i in range(int(math.log2(min(source.num_devices, MOST_DEGREE))) + 1)]
    rooms = {tp: _room(source, tp, caps, load.context_tokens) for tp in degrees}
    fitting = [tp for tp, room in rooms.items() if room]
    seqs = min([STEP_SEQS, *(rooms[tp] for tp in fitting)])
    shape = decode_shape(seqs, load.context_tokens)
    found = tuple(
        _degree(source.timer(ParallelPlan(tp=tp)), tp, shape, rooms[tp], load) for tp in fitting
    )
    scaling = Scaling(
        num_devices=source.num_devices,
        num_seqs=seqs,
        context_tokens=load.context_tokens,
        degrees=found,
    )
    if not found:
        return scaling
    plan = ParallelPlan(tp=scaling.knee)
    return replace(scaling, tricks=source.tricks(plan, shape))


def _room(source: StepSource, tp: int, caps: Caps, context_tokens: int) -> int:
    """Sequences that ``tp`` devices have room for; 0 where the model does not run on them."""
    plan = ParallelPlan(tp=tp)
    try:
        source.timer(plan)
        room = source.kv_tokens(plan, caps)
    except (EngineError, TunerError):
        return 0
    return min(caps.max_num_seqs, room // context_tokens)


def _degree(timer: PartedTimer, tp: int, shape: StepShape, room: int, load: _MeanRequest) -> Degree:
    """A full batch decodes while prompts are computed one by one: a bound, not a run."""
    parts = timer.breakdown(shape)
    full_s = step_s(timer, decode_shape(room, load.context_tokens))
    prompt_s = step_s(timer, prompt_shape(load.input_tokens))
    request_s = prompt_s + load.output_tokens * full_s / room
    return Degree(
        tp=tp,
        step_s=parts.step_s,
        communication_s=parts.communication_s,
        host_s=parts.exposed_s,
        launch_s=parts.launch_s,
        num_seqs=room,
        throughput_tokens_per_s=load.output_tokens / request_s,
    )
