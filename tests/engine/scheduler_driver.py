"""Drives an executor with the engine's own scheduler, one step ahead, and keeps the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.executors.protocol import Executor
from engine.modes.chooser import ModeChooser
from engine.replica.messages_out import step_plan
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import ScheduledStep
from engine.spec.config import EngineConfig
from engine.spec.model import ModelConfig
from engine.spec.modes import AUTO, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps
from engine.spec.steps import int32

CAPS = Caps(max_num_seqs=8, max_num_batched_tokens=24)


@dataclass
class Generated:
    """Tokens of one request and the logits ``f8[vocab_size]`` each was chosen from."""

    token_ids: list[int] = field(default_factory=list)
    logits: list[npt.NDArray[np.float64]] = field(default_factory=list)


def generate(
    executor: Executor,
    *,
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    pin: ModePin = AUTO,
    coin_seed: int | None = None,
) -> list[Generated]:
    """Start, run every prompt to its last token, close. Long prompts come in chunks."""
    info = executor.start()
    scheduler = Scheduler(
        caps=CAPS,
        envelope=CAPS,
        chooser=ModeChooser(plan=plan, threshold_tokens=8, pin=pin, coin_seed=coin_seed),
        num_blocks=info.num_kv_blocks,
        block_size=config.block_size,
        max_model_len=128,
        depth=info.depth,
    )
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        scheduler.add(Request(request_id=str(index), prompt_ids=tuple(prompt), sampling=sampling))
    results = [Generated() for _ in prompts]
    in_flight: deque[ScheduledStep] = deque()
    while True:
        while (step := scheduler.schedule()) is not None:
            executor.submit(step_plan(step, return_logits=True))
            in_flight.append(step)
        if (step := scheduler.schedule_ahead()) is not None:
            executor.submit(step_plan(step, return_logits=True))
            in_flight.append(step)
        if not in_flight:
            break
        answer = executor.collect()
        outcome = scheduler.commit(in_flight.popleft(), int32(answer.token_ids))
        if not outcome.sampled:
            continue
        logits = np.frombuffer(answer.logits or b"").reshape(-1, model.vocab_size)
        for row, (sequence, token_id) in zip(outcome.sampled_rows, outcome.sampled, strict=True):
            results[int(sequence.request_id)].token_ids.append(token_id)
            results[int(sequence.request_id)].logits.append(logits[row])
    executor.close()
    return results
