"""A sequence whose logits are no numbers ends with an error; its neighbours notice nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.spec.config import EngineConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, SamplingParams
from engine.spec.settings import Settings
from tests.engine.checkpoints import OVERFLOWING_TOKEN, write_overflowing
from tests.engine.paced import Collector

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_overflowing(tmp_path_factory.mktemp("overflowing") / "model")


def submit(engine: Engine, name: str, prompt: tuple[int, ...], **sampling: float) -> Collector:
    """One request that never chooses the poison itself."""
    collector = Collector()
    params = SamplingParams(
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        logit_bias=((OVERFLOWING_TOKEN, -100.0),),
        **sampling,
    )
    request = Request(
        request_id=name, prompt_ids=prompt, sampling=params, arrival_s=time.monotonic()
    )
    engine.submit(request, collector)
    return collector


PROMPTS = {
    "plain": ((5, 6, 7), {}),
    "drawn": ((8, 9, 10, 11), {"temperature": 1.0, "seed": 3}),
    "told": ((12,), {"logprobs": 2}),
}


def answers(engine: Engine, *, with_poison: bool) -> dict[str, list[int]]:
    """What the neighbours are answered, beside poisoned requests of their kinds or alone."""
    poisoned = {}
    collectors = {}
    for name, (prompt, sampling) in PROMPTS.items():
        collectors[name] = submit(engine, name, prompt, **sampling)
        if with_poison:
            poisoned[name] = submit(engine, f"{name}-bad", (*prompt, OVERFLOWING_TOKEN), **sampling)
    for collector in poisoned.values():
        last = collector.wait().outputs[-1]
        assert collector.reason is FinishReason.ERROR
        assert collector.token_ids == []
        assert last.error is not None
        assert "no finite value" in last.error
    for collector in collectors.values():
        assert collector.wait().reason is FinishReason.LENGTH
    engine.check_integrity()
    return {name: collector.token_ids for name, collector in collectors.items()}


@pytest.mark.usefixtures("lasting_ranks")
@pytest.mark.parametrize(
    ("plan", "is_parallel"),
    [
        (ParallelPlan(), True),
        (ParallelPlan(sp=2, shift=True), True),
        (ParallelPlan(tp=2), False),
        (ParallelPlan(pp=2), True),
    ],
    ids=str,
)
def test_it_ends_with_an_error_and_its_neighbours_are_answered_as_if_they_were_alone(
    folder: Path, plan: ParallelPlan, is_parallel: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(
        model_dir=folder,
        num_kv_blocks=64,
        settings=Settings(plan=plan),
        parallel_sampling=is_parallel,
    )
    with Engine(config) as engine:
        alone = answers(engine, with_poison=False)
        assert answers(engine, with_poison=True) == alone
        assert answers(engine, with_poison=True) == alone, "freed blocks are used again"
        stats = engine.stats()
    assert stats.finished[FinishReason.ERROR] == stats.non_finite_logits == 2 * len(PROMPTS)
    assert stats.generation_tokens == 3 * len(PROMPTS) * MAX_TOKENS
    (said,) = [record.getMessage() for record in caplog.records if "finite" in record.getMessage()]
    assert "overflow" in said
