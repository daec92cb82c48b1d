"""Small models, workloads and timers that the tuner's tests build their worlds from."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec.model import ModelConfig
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from tuner.simulation.run import OnProgress, Run, SimulationResult, no_progress
from tuner.simulation.setup import SimulatedEngine
from tuner.simulation.steering import Steering
from tuner.workload.workload import Arrival, ClosedLoop, Workload, WorkloadSource

SMALL = ModelConfig(
    model_type="llama",
    num_layers=4,
    hidden_size=256,
    ffn_size=512,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    vocab_size=1000,
    max_positions=4096,
)
LLAMA_70B = ModelConfig(
    model_type="llama",
    num_layers=80,
    hidden_size=8192,
    ffn_size=28672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_positions=131072,
)


@dataclass(frozen=True)
class LinearTimer:
    """A step timer that is a straight line in tokens, sequences and context."""

    stages: int = 1
    fixed_s: float = 0.010
    per_token_s: float = 0.0001
    per_context_s: float = 1e-7
    host_s: float = 0.001

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        one = (
            self.fixed_s
            + self.per_token_s * shape.num_tokens
            + self.per_context_s * shape.decode_context_tokens
        ) / self.stages
        return (one,) * self.stages

    def host_seconds(self, shape: StepShape) -> float:
        return self.host_s


def open_loop(
    *, requests: int, gap_s: float, input_tokens: int = 100, output_tokens: int = 20
) -> Workload:
    """Requests at equal gaps; lengths vary a little by position."""
    return Workload(
        arrivals=tuple(
            Arrival(
                arrival_s=i * gap_s,
                input_tokens=input_tokens + 7 * (i % 5),
                output_tokens=output_tokens + i % 3,
            )
            for i in range(requests)
        ),
        source=WorkloadSource(spec="test", seed=0, sha256="0" * 64, rows=requests, span_s=1.0),
    )


def closed_loop(
    *, requests: int, concurrency: int, input_tokens: int = 100, output_tokens: int = 20
) -> Workload:
    base = open_loop(
        requests=requests, gap_s=0.0, input_tokens=input_tokens, output_tokens=output_tokens
    )
    return Workload(
        arrivals=base.arrivals, source=base.source, closed=ClosedLoop(concurrency=concurrency)
    )


def in_python(
    engine: SimulatedEngine,
    settings: Settings,
    workload: Workload,
    *,
    seed: int = 0,
    steering: Steering | None = None,
    on_progress: OnProgress = no_progress,
) -> SimulationResult:
    """``simulate`` as it is where no compiler is: by the engine's own scheduler, step by step."""
    run = Run(engine, settings, workload, seed=seed, steering=steering, on_progress=on_progress)
    run.to_the_end()
    return run.result()
