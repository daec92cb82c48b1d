"""A checkpoint, what ``transformers`` answers with it, and what a plan does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.modes.chooser import ModeChooser
from engine.spec.feasible import infeasible_reasons, list_plans
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from tests.engine.checkpoints import Reference, reference
from tests.engine.step_driver import ChooseMode, DrivenSequence, StepDriver
from tests.engine.thread_ranks import ThreadReplica

# One token, a few, more than a step's budget (so that it is prefilled in chunks), a block's worth.
PROMPTS = [[5, 9, 200, 31, 77, 8, 100], [3], [*range(250, 230, -1), 4, 5, 6], [1, 2, 3, 258]]
MAX_TOKENS = 8
BUDGET = 11
VOCAB_SIZE = 259
NAMED_PLANS = ("sp=8", "sp=4,tp=2", "sp=2,tp=4", "pp=2,sp=4", "pp=2,sp=2,tp=2")


def single_replica_plans(model: ModelConfig, num_devices: int) -> list[ParallelPlan]:
    """Every plan of one replica that ``model`` can run on 1..``num_devices`` devices."""
    plans = list_plans(num_devices)
    return [plan for plan in plans if plan.dp == 1 and not infeasible_reasons(plan, model)]


class World:
    """A checkpoint, what ``transformers`` makes of it, and runs of any plan over it on
    ``device``.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = device
        self.model = ModelConfig.from_dir(folder)
        self._references: dict[torch.dtype, list[Reference]] = {}

    def reference(self, dtype: torch.dtype) -> list[Reference]:
        if dtype not in self._references:
            self._references[dtype] = reference(
                self.folder, PROMPTS, max_tokens=MAX_TOKENS, dtype=dtype
            )
        return self._references[dtype]

    def run(
        self,
        plan: ParallelPlan,
        *,
        mode: ChooseMode,
        dtype: DType = DType.FLOAT64,
        budget: int = BUDGET,
        num_ahead: int = 0,
        restarts: int | None = None,
        has_parallel_sampling: bool = True,
        max_graph_tokens: int = 0,
        quantisation: WeightFormat | None = None,
        prompts: Sequence[Sequence[int]] = PROMPTS,
        **sampling: float,
    ) -> list[DrivenSequence]:
        with ThreadReplica(
            model_dir=self.folder,
            plan=plan,
            dtype=dtype,
            device=self.device,
            has_parallel_sampling=has_parallel_sampling,
            max_graph_tokens=max_graph_tokens,
            quantisation=quantisation,
        ) as replica:
            driver = StepDriver(
                replica,
                vocab_size=self.model.vocab_size,
                budget=budget,
                num_ahead=num_ahead,
                restarts=restarts,
                mode=mode,
            )
            return driver.run(prompts, max_tokens=MAX_TOKENS, **sampling)


def coin(plan: ParallelPlan, seed: int = 3) -> ChooseMode:
    """The rung drawn at random every step (base where the plan has no Shift)."""
    chooser = ModeChooser(plan=plan, threshold_tokens=0, coin_seed=seed)
    return lambda step_id: chooser.choose(1, step_id)


def pinned(mode: Mode) -> ChooseMode:
    return lambda step_id: mode


def difference(got: list[DrivenSequence], wanted: list[DrivenSequence] | list[Reference]) -> float:
    """Largest difference of any logit, relative to the largest logit of its row."""
    rows = [
        (a, b)
        for g, w in zip(got, wanted, strict=True)
        for a, b in zip(g.logits, w.logits, strict=True)
    ]
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in rows)


def outputs(sequences: list[DrivenSequence] | list[Reference]) -> list[list[int]]:
    return [sequence.output for sequence in sequences]


def same_unless_tied(got: DrivenSequence, want: Reference) -> None:
    """Equal until the reference's two best logits are closer than the tolerance."""
    for step, (a, b) in enumerate(zip(got.logits, want.logits, strict=True)):
        tolerance = 1e-4 * abs(b).max()
        assert abs(a - b).max() < tolerance
        second, best = np.sort(b)[-2:]
        if got.output[step] != want.output[step]:
            assert best - second < tolerance
            return
