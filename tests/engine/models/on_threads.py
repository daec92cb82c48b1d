"""A checkpoint run on ranks that are threads, to be compared with ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.spec.model import ModelConfig
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import parse_plan
from tests.engine.step_driver import DrivenSequence, StepDriver
from tests.engine.thread_ranks import ThreadReplica


def answers_on_threads(
    folder: Path, plan: str, prompts: Sequence[Sequence[int]], *, max_tokens: int
) -> list[DrivenSequence]:
    """What ranks under ``plan`` answer; with Shift on, every other step runs in the other mode."""
    parallel = parse_plan(plan).plan
    with ThreadReplica(model_dir=folder, plan=parallel) as replica:
        driver = StepDriver(
            replica,
            vocab_size=ModelConfig.from_dir(folder).vocab_size,
            mode=lambda step_id: SHIFT if parallel.shift and step_id % 2 else BASE,
        )
        return driver.run(prompts, max_tokens=max_tokens)
