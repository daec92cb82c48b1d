"""A small simulated engine under a few requests, each named by when it comes and its sizes."""

from __future__ import annotations

from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tests.tuner.worlds import SMALL, LinearTimer
from tuner.simulation.simulate import Ranks, SimulatedEngine, simulate
from tuner.spec.look_ahead import LookAhead
from tuner.spec.prompt_wait import NO_PROMPT_WAIT, PromptWait
from tuner.workload.workload import Arrival, Workload, WorkloadSource

# Tokens of a step.
BUDGET = 256


def timings(
    *arrivals: tuple[float, int, int],
    ahead: bool = True,
    dp: int = 1,
    wait: PromptWait = NO_PROMPT_WAIT,
) -> tuple[RequestTiming, ...]:
    """Of requests of (when, prompt tokens, output tokens)."""
    workload = Workload(
        arrivals=tuple(
            Arrival(arrival_s=at_s, input_tokens=prompt, output_tokens=output)
            for at_s, prompt, output in arrivals
        ),
        source=WorkloadSource(spec="test", seed=0, sha256="", rows=len(arrivals), span_s=1.0),
    )
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda plan: Ranks(timer=LinearTimer(stages=1), num_kv_blocks=2000),
        max_model_len=1024,
        look_ahead=LookAhead.AT_START if ahead else LookAhead.NONE,
        prompt_wait=wait,
    )
    settings = Settings(
        plan=ParallelPlan(dp=dp),
        threshold_tokens=64,
        caps=Caps(max_num_seqs=16, max_num_batched_tokens=BUDGET),
    )
    return simulate(engine, settings, workload).measurement.timings
