"""Times whole passes of a model cut to a few layers, on the engine's own ranks.

Two depths separate what each layer costs from what each step costs; the ranks, the messages and
the collectives are the engine's, so nothing that a real step does is left out.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from engine.executors.pool import RankPool
from engine.executors.process import ProcessExecutor
from engine.models.loader import open_weights
from engine.models.scales import scale_names
from engine.models.shapes import expected_shapes
from engine.replica.devices import held_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import CheckpointError, RankError
from engine.spec.feasible import infeasible_reasons
from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.profiling.budget import Budget
from tuner.profiling.profile import PieceTime, trimmed_mean
from tuner.profiling.steps import StepRecipe, synthetic_step
from tuner.spec.cancel import NEVER, Cancellation

RECIPES = (
    StepRecipe(decodes=1, decode_context=64),
    StepRecipe(decodes=2, decode_context=400),
    StepRecipe(decodes=4, decode_context=128),
    StepRecipe(decodes=8, decode_context=512),
    StepRecipe(decodes=16, decode_context=128),
    StepRecipe(decodes=32, decode_context=384),
    StepRecipe(chunks=1, prefill=24),
    StepRecipe(chunks=1, prefill=96),
    StepRecipe(chunks=1, prefill=256),
    StepRecipe(chunks=2, prefill=256),
    StepRecipe(chunks=1, prefill=192, prefill_context=512),
    StepRecipe(decodes=8, decode_context=256, chunks=1, prefill=64),
    StepRecipe(decodes=16, decode_context=256, chunks=1, prefill=240),
)
MIN_REPEATS, MAX_REPEATS = 3, 100


def piece_plans(model: ModelConfig, num_ranks: int) -> list[ParallelPlan]:
    """One-replica plans of up to ``num_ranks`` ranks whose passes cover all others' parts."""
    wanted = [ParallelPlan()]
    for degree in range(2, num_ranks + 1):
        wanted += [
            ParallelPlan(tp=degree),
            ParallelPlan(sp=degree, shift=True),
            ParallelPlan(pp=degree),
        ]
    return [plan for plan in wanted if not infeasible_reasons(plan, model)]


def profile_pieces(
    config: EngineConfig,
    *,
    num_ranks: int,
    max_tokens: int,
    max_context: int,
    budget: Budget,
    cancel: Cancellation = NEVER,
) -> list[PieceTime]:
    """Times of every recipe that fits, under every piece plan, at two depths, within ``budget``.

    ``cancel`` is asked between steps.
    """
    model = ModelConfig.from_dir(config.model_dir)
    plans = piece_plans(model, num_ranks)
    recipes = [r for r in RECIPES if r.num_tokens <= max_tokens and r.longest <= max_context]
    plans.sort(key=lambda plan: plan.replica_size)
    runs = [(plan, depth) for plan in plans for depth in _depths(plan, model)]
    left = sum(len(plan.modes) for plan, _ in runs)
    found: dict[tuple[ParallelPlan, int], list[PieceTime]] = {}
    with closing(RankPool()) as ranks:
        for plan, depth in reversed(runs):  # the largest first: its ranks serve all others
            with (
                budget.part(len(plan.modes) / left) as seconds,
                cut_model(config.model_dir, depth) as folder,
            ):
                cut = replace(
                    config,
                    model_dir=folder,
                    settings=Settings(plan=plan),
                    executor=ExecutorKind.PROCESS,
                    num_kv_blocks=max(r.num_blocks(config.block_size) for r in recipes),
                )
                per_point = seconds / (len(plan.modes) * len(recipes))
                found[plan, depth] = _time_plan(cut, ranks, recipes, per_point, cancel)
            left -= len(plan.modes)
    return [piece for run in runs for piece in found[run]]


def _depths(plan: ParallelPlan, model: ModelConfig) -> list[int]:
    """Two numbers of layers, as far apart as is cheap."""
    deep = min(model.num_layers, 3 * plan.pp)
    return sorted({min(plan.pp, deep), deep})


def _time_plan(
    config: EngineConfig,
    ranks: RankPool,
    recipes: list[StepRecipe],
    seconds: float,
    cancel: Cancellation,
) -> list[PieceTime]:
    cancel.check()
    model = held_model(config, ModelConfig.from_dir(config.model_dir))
    plan = config.settings.plan
    executor = ProcessExecutor(config, model, plan, ranks=ranks, is_ending=lambda: cancel.is_over)
    try:
        executor.start()
        return [
            _time_recipe(config, model, executor, recipe, mode, seconds, cancel)
            for mode in plan.modes
            for recipe in recipes
        ]
    except RankError:
        cancel.check()
        raise
    finally:
        executor.close()


def _time_recipe(
    config: EngineConfig,
    model: ModelConfig,
    executor: ProcessExecutor,
    recipe: StepRecipe,
    mode: Mode,
    seconds: float,
    cancel: Cancellation,
) -> PieceTime:
    taken: list[float] = []
    waited: list[float] = []
    outside: list[float] = []
    started_s = time.perf_counter()
    step_id = 0

    def is_enough() -> bool:
        left_s = seconds - (time.perf_counter() - started_s)
        return len(taken) >= MAX_REPEATS or (len(taken) > MIN_REPEATS and left_s <= 0)

    while not is_enough():
        cancel.check()  # about a microsecond
        step = synthetic_step(
            recipe,
            step_id=step_id,
            mode=mode,
            block_size=config.block_size,
            vocab_size=model.vocab_size,
        )
        submitted_s = time.perf_counter()
        executor.submit(step)
        result = executor.collect()
        taken.append(time.perf_counter() - submitted_s)
        waited.append(result.communication_s)
        outside.append(taken[-1] - result.rank_s)
        step_id += 1
    p10, p50, p90 = np.percentile(taken[1:], (10, 50, 90))
    return PieceTime(
        plan=str(config.settings.plan),
        num_layers=model.num_layers,
        shape=step.shape,
        step_s=trimmed_mean(taken[1:]),
        communication_s=float(np.median(waited[1:])),
        spread=float((p90 - p10) / p50),
        dispatch_s=trimmed_mean([max(0.0, seconds) for seconds in outside[1:]]),
    )


@contextmanager
def cut_model(model_dir: Path, num_layers: int) -> Iterator[Path]:
    """A temporary checkpoint with the first ``num_layers`` layers of another.

    Raises:
        CheckpointError: a tensor of those layers is missing, or a file cannot be read.
    """
    raw = json.loads((model_dir / "config.json").read_text())
    raw["num_hidden_layers"] = num_layers
    if "layer_types" in raw:
        raw["layer_types"] = raw["layer_types"][:num_layers]
    with tempfile.TemporaryDirectory(prefix="gearshift-cut-") as folder:
        cut = Path(folder)
        (cut / "config.json").write_text(json.dumps(raw))
        _copy_tensors(model_dir, cut, set(expected_shapes(ModelConfig.from_dir(cut))))
        yield cut


def _copy_tensors(source: Path, target: Path, names: set[str]) -> None:
    """Copy the tensors of ``names``, and the scales of those that have some."""
    wanted = names | {scale for name in names for scale in scale_names(name)}
    kept: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        with open_weights(path) as tensors:
            kept |= {name: tensors.get_tensor(name) for name in wanted & set(tensors.keys())}
    if missing := sorted(names - set(kept)):
        raise CheckpointError(f"{source}: tensor {missing[0]} is missing")
    save_file(kept, target / "model.safetensors")
