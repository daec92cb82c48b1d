"""The engine on a GPU: what every plan answers there, with and without graphs, and that no step
waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.engine import Engine
from engine.models.create import create_model
from engine.parallel.mesh import solo_groups
from engine.parallel.one_shot import ON_VARIABLE
from engine.rank.runner import ModelRunner
from engine.spec.config import Collectives, EngineConfig, ExecutorKind
from engine.spec.model import DType
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.request import SamplingParams
from engine.spec.settings import Settings
from engine.spec.share import RankShare
from engine.spec.steps import SlotSampling, SlotStart, StepPlan, StepShape
from tests.engine.checkpoints import FAMILIES, family_config, write_checkpoint
from tests.engine.cuda_checks import syncs_refused
from tests.engine.plan_worlds import (
    NAMED_PLANS,
    World,
    coin,
    difference,
    outputs,
    pinned,
    same_unless_tied,
    single_replica_plans,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
PROMPT = tuple(range(5, 60))


def int32_bytes(values: Iterable[int]) -> bytes:
    return np.array(list(values), np.int32).tobytes()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        write_checkpoint(folder, family_config(family))
        made[family] = World(folder, "cuda:0")
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_in_float64_answers_exactly_as_transformers(
    worlds: dict[str, World], family: str
) -> None:
    wanted = worlds[family].reference(torch.float64)
    got = worlds[family].run(ParallelPlan(), mode=pinned(BASE))
    assert outputs(got) == outputs(wanted)
    assert difference(got, wanted) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_in_float64_equal_the_single_rank_with_rungs_drawn_at_random(
    worlds: dict[str, World], family: str
) -> None:
    world = worlds[family]
    single = world.run(ParallelPlan(), mode=pinned(BASE))
    for text in NAMED_PLANS:
        plan = parse_plan(f"{text},shift").plan
        got = world.run(plan, mode=coin(plan))
        assert outputs(got) == outputs(single), plan
        assert difference(got, single) < 1e-9, plan


@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_in_float32_picks_the_tokens_of_transformers_unless_they_tie(
    worlds: dict[str, World], family: str
) -> None:
    world = worlds[family]
    wanted = world.reference(torch.float32)
    plans = single_replica_plans(world.model, 8)
    for plan in plans[:: 3 if family == "llama" else 8]:
        got = world.run(plan, mode=coin(plan), dtype=DType.FLOAT32)
        for mine, reference in zip(got, wanted, strict=True):
            same_unless_tied(mine, reference)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [3, 11, 40])
def test_graphs_answer_what_transformers_answers(
    worlds: dict[str, World], family: str, budget: int
) -> None:
    wanted = worlds[family].reference(torch.float32)
    got = worlds[family].run(
        ParallelPlan(),
        mode=pinned(BASE),
        dtype=DType.FLOAT32,
        budget=budget,
        max_graph_tokens=16,
    )
    for mine, reference in zip(got, wanted, strict=True):
        same_unless_tied(mine, reference)


PLANS = ("tp=1", "tp=2", "sp=2,shift", "sp=2,tp=2,shift", "pp=2", "pp=2,sp=2,shift", "dp=2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_model(folder, preset="tiny")
    return folder


def engine_config(folder: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(model_dir=folder, num_kv_blocks=256, max_model_len=512, **changes)


def answers_of(config: EngineConfig) -> list[Sequence[int]]:
    with Engine(config) as engine:
        return [
            engine.generate(PROMPT, SamplingParams(max_tokens=24, **sampling)).token_ids
            for sampling in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 4})
        ]


def answers_on_cuda(folder: Path, text: str, collectives: Collectives) -> list[Sequence[int]]:
    return answers_of(
        engine_config(
            folder,
            device="cuda",
            settings=Settings(plan=parse_plan(text).plan),
            executor=ExecutorKind.PROCESS,
            collectives=collectives,
        )
    )


@pytest.mark.parametrize("text", PLANS)
def test_ranks_in_processes_that_share_a_device_answer_as_a_cpu_does(tiny: Path, text: str) -> None:
    wanted = answers_of(engine_config(tiny, executor=ExecutorKind.INLINE))
    assert answers_on_cuda(tiny, text, Collectives.SHM) == wanted


@pytest.mark.parametrize("one_shot", ["0", "1"])
@pytest.mark.parametrize("text", PLANS)
def test_ranks_joined_by_nccl_answer_as_a_cpu_does(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, text: str, one_shot: str
) -> None:
    if torch.cuda.device_count() < parse_plan(text).plan.world_size:
        pytest.skip("too few CUDA devices here")
    monkeypatch.setenv(ON_VARIABLE, one_shot)
    wanted = answers_of(engine_config(tiny, executor=ExecutorKind.INLINE))
    assert answers_on_cuda(tiny, text, Collectives.NCCL) == wanted


def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    create_model(folder, preset="tiny")
    runner = ModelRunner(
        RankShare(
            model_dir=str(folder),
            plan=ParallelPlan(),
            rank=0,
            dtype=DType.BFLOAT16,
            device="cuda:0",
            block_size=16,
            num_kv_blocks=64,
            num_slots=8,
            max_blocks_per_seq=16,
            has_parallel_sampling=True,
            max_graph_tokens=16,
        ),
        groups=solo_groups(),
    )
    samplings = [
        SlotSampling(),
        SlotSampling(temperature=0.8, seed=3),
        SlotSampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=4),
        SlotSampling(temperature=0.5, repetition_penalty=1.1, presence_penalty=0.2, seed=5),
    ]
    starts = [
        SlotStart(
            slot=slot,
            prompt_len=20,
            token_ids=int32_bytes(range(20)),
            blocks=int32_bytes([2 * slot, 2 * slot + 1]),
            sampling=sampling,
        )
        for slot, sampling in enumerate(samplings)
    ]
    answers = []
    for step_id in range(4):
        step = StepPlan(
            step_id=step_id,
            shape=StepShape(),
            starts=starts if step_id == 0 else [],
            slots=int32_bytes(range(4)),
            query_lens=int32_bytes([20] * 4) if step_id == 0 else b"",
        )
        # The first steps compile kernels and fill torch's pools of memory, which may wait.
        with syncs_refused() if step_id >= 2 else nullcontext():
            answers.append(runner.execute(runner.prepare(step)))
    for answer in answers:
        assert answer is not None
        assert len(answer.wait().token_ids) == 16
