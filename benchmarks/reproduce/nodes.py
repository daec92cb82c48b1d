"""Served models on described hardware, steps to time on them, and closed-loop runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from engine.spec.measurement import Measurement
from engine.spec.modes import BASE, Mode
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from tuner.backends import load_backend
from tuner.described.node import Node
from tuner.hardware import Precision, parse_hardware
from tuner.work.models import load_model
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

SEED = 0
# What the papers measured: engines whose host works between steps.
OLDER_VLLM = "vllm@0.12"


@cache
def get_node(hardware: str, model: str, precision: str, backend: str) -> Node:
    """``model`` on ``hardware`` (as in ``8xh200``), made once.

    Raises:
        TunerError: a name that is not known.
    """
    devices = parse_hardware(hardware)
    return Node(
        hardware=devices,
        model=load_model(model),
        precision=Precision.parse(precision),
        backend=load_backend(backend, devices.device),
    )


@dataclass(frozen=True, kw_only=True)
class Load:
    """A closed loop of equal requests."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    requests: int

    @property
    def workload(self) -> Workload:
        return parse_workload(
            f"closed:concurrency={self.concurrency},input={self.input_tokens},"
            f"output={self.output_tokens},requests={self.requests}",
            seed=SEED,
        )


def get_settings(
    plan: str, *, max_num_seqs: int, max_num_batched_tokens: int, threshold_tokens: int = 256
) -> Settings:
    """``plan`` as on the command line, with the caps."""
    caps = Caps(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    return Settings(plan=parse_plan(plan).plan, threshold_tokens=threshold_tokens, caps=caps)


def run(node: Node, settings: Settings, workload: Workload) -> Measurement:
    """What one simulated run of ``workload`` yields."""
    return node.simulate(settings, workload, seed=SEED).measurement


def decode_step(seqs: int, context: int, mode: Mode = BASE) -> StepShape:
    """One token for each of ``seqs`` sequences that hold ``context`` tokens each."""
    return StepShape(
        mode=mode,
        num_seqs=seqs,
        num_decode_tokens=seqs,
        decode_context_tokens=seqs * context,
        num_sampled=seqs,
    )


def prefill_step(seqs: int, tokens: int, mode: Mode = BASE) -> StepShape:
    """The whole prompts, ``tokens`` each, of ``seqs`` sequences."""
    return StepShape(
        mode=mode,
        num_seqs=seqs,
        num_prefill_tokens=seqs * tokens,
        prefill_context_tokens=seqs * tokens,
        prefill_attention_pairs=seqs * tokens * (tokens + 1) // 2,
        num_sampled=seqs,
    )


def device_seconds(node: Node, plan: ParallelPlan, shape: StepShape) -> float:
    """One step through all stages, without the host."""
    return sum(node.timer(plan).stage_seconds(shape))


def p50(value: float | None) -> float:
    """A percentile that was observed."""
    assert value is not None, "every run here completes requests"
    return value
