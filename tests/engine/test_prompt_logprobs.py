"""Log probabilities of a prompt are those of ``transformers``, however its tokens are computed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.engine import Engine
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams, TokenLogprobs
from engine.spec.settings import Caps, Settings
from engine.spec.steps import num_scored
from tests.engine.checkpoints import family_config, write_checkpoint
from tests.engine.paced import Collector
from tests.engine.server.conftest import FixedTimer

SHARED = tuple(range(100, 140))
PROMPTS = {
    "one": (7,),
    "two": (7, 250),
    "long": (*SHARED, 3, 3, 3, 58, 200, 11),
    "longer": (*SHARED, 9, *range(30, 70)),
}
NUM_BEST = 3
PLANS = [
    ParallelPlan(),
    ParallelPlan(tp=2),
    ParallelPlan(sp=2, shift=True),
    ParallelPlan(pp=2),
    ParallelPlan(pp=2, sp=2),
    ParallelPlan(sp=2, tp=2, shift=True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 query heads, 2 KV heads, and a vocabulary of 259, which no plan cuts evenly."""
    return write_checkpoint(tmp_path_factory.mktemp("llama") / "model", family_config("llama"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Log probabilities f8[prompt tokens, vocabulary] by ``transformers``, in float64 as here: in
    float32 either side is a few 1e-5 from the truth. Its angles stay in float32.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return {
            name: model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
            for name, ids in PROMPTS.items()
        }


def ask(
    engine: Engine, *, turns: int = 1, max_tokens: int = 5, label: str = "first"
) -> list[Collector]:
    """Every prompt at once, ``turns`` times over, and a neighbour that asks for nothing."""
    silent = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    params = replace(silent, prompt_logprobs=NUM_BEST)
    collectors = []
    for turn in range(turns):
        for name, ids in [*PROMPTS.items(), ("silent", PROMPTS["longer"])]:
            request = Request(
                request_id=f"{name}/{label}-{turn}",
                prompt_ids=ids,
                sampling=silent if name == "silent" else params,
                arrival_s=time.monotonic(),
            )
            collectors.append(Collector())
            engine.submit(request, collectors[-1])
    return [collector.wait() for collector in collectors]


def told(collector: Collector) -> tuple[TokenLogprobs, ...]:
    first, *later = collector.outputs
    assert not any(output.prompt_logprobs for output in later), "they come once"
    return first.prompt_logprobs


def check(collectors: list[Collector], expected: dict[str, npt.NDArray[np.float64]]) -> None:
    for collector in collectors:
        name = collector.outputs[0].request_id.split("/")[0]
        found = told(collector)
        if name == "silent":
            assert found == ()
            continue
        ids = PROMPTS[name]
        assert [entry.token_id for entry in found] == list(ids[1:])
        for entry, row in zip(found, expected[name], strict=False):
            best = np.argsort(-row, kind="stable")[:NUM_BEST]
            assert [token for token, _ in entry.top] == best.tolist()
            np.testing.assert_allclose([value for _, value in entry.top], row[best], atol=1e-5)
            np.testing.assert_allclose(entry.logprob, row[entry.token_id], atol=1e-5)
            assert entry.rank == 1 + (row > row[entry.token_id]).sum()


@pytest.mark.usefixtures("lasting_ranks")
@pytest.mark.parametrize("budget", [7, 2048])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_they_are_those_of_transformers_under_every_plan_in_one_step_or_in_chunks(
    folder: Path, expected: dict[str, npt.NDArray[np.float64]], plan: ParallelPlan, budget: int
) -> None:
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=budget)
    config = EngineConfig(
        model_dir=folder,
        dtype=DType.FLOAT64,
        num_kv_blocks=64,
        settings=Settings(plan=plan, caps=caps),
        coin_seed=1 if plan.shift else None,
    )
    with Engine(config) as engine:
        # Again, when every beginning can be found in the prefix cache.
        check(ask(engine) + ask(engine, label="again"), expected)
        engine.check_integrity()


@pytest.mark.usefixtures("lasting_ranks")
def test_a_prompt_that_is_preempted_is_told_of_once(
    folder: Path, expected: dict[str, npt.NDArray[np.float64]]
) -> None:
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=24)
    config = EngineConfig(
        model_dir=folder,
        dtype=DType.FLOAT64,
        num_kv_blocks=9,
        settings=Settings(plan=ParallelPlan(tp=2), caps=caps),
    )
    with Engine(config) as engine:
        check(ask(engine, turns=3, max_tokens=40), expected)
        assert engine.stats().preemptions > 0


def test_generate_gives_them_whole(
    folder: Path, expected: dict[str, npt.NDArray[np.float64]]
) -> None:
    config = EngineConfig(model_dir=folder, dtype=DType.FLOAT64, num_kv_blocks=64)
    ids = PROMPTS["long"]
    with Engine(config) as engine:
        sampling = SamplingParams(prompt_logprobs=0, logprobs=1, max_tokens=3, ignore_eos=True)
        found = engine.generate(ids, sampling)
    wanted = [row[token] for row, token in zip(expected["long"], ids[1:], strict=False)]
    told_of = [entry.logprob for entry in found.prompt_logprobs]
    np.testing.assert_allclose(told_of, wanted, atol=1e-5)
    assert all(entry.top == () for entry in found.prompt_logprobs)
    assert [entry.token_id for entry in found.logprobs] == list(found.token_ids)


def test_ranks_that_only_keep_time_tell_nothing(folder: Path) -> None:
    config = EngineConfig(model_dir=folder, executor=ExecutorKind.SIMULATED, num_kv_blocks=64)
    with Engine(config, timer_factory=lambda plan: FixedTimer(plan=plan, step_s=0.001)) as engine:
        sampling = SamplingParams(prompt_logprobs=1, logprobs=1, max_tokens=2, ignore_eos=True)
        found = engine.generate((5, 6, 7), sampling)
    assert len(found.token_ids) == 2
    assert found.prompt_logprobs == found.logprobs == ()


@pytest.mark.parametrize(
    ("num_before", "num_new", "prompt_len", "wanted"),
    [
        (0, 5, 5, 4),
        (0, 3, 5, 3),
        (3, 2, 5, 1),
        (4, 1, 5, 0),
        (0, 1, 1, 0),
        (0, 9, 5, 4),
        (7, 1, 5, 0),
    ],
)
def test_every_token_of_a_prompt_but_the_first_is_told_of_once(
    num_before: int, num_new: int, prompt_len: int, wanted: int
) -> None:
    assert num_scored(num_before, num_new, prompt_len) == wanted
