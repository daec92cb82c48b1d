"""Every plan answers what ``transformers`` answers, from one copy of the weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.model import DType
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, parse_plan
from tests.engine.checkpoints import FAMILIES, family_config, write_checkpoint
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
from tests.engine.step_driver import DrivenSequence

# The family, tied or not, whose every plan runs by default; of the others it is the named ones.
EVERY_PLAN = ("llama", False)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], World]:
    """A checkpoint per family, tied and untied: 8 query heads, 2 KV heads, vocabulary 259."""
    made = {}
    for family, tied in itertools.product(FAMILIES, (False, True)):
        folder = tmp_path_factory.mktemp(f"{family}-{tied}")
        write_checkpoint(folder, family_config(family, tie_word_embeddings=tied))
        made[(family, tied)] = World(folder)
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_in_float64_answers_exactly_as_transformers(
    worlds: dict[tuple[str, bool], World], family: str, tied: bool
) -> None:
    world = worlds[(family, tied)]
    wanted = world.reference(torch.float64)
    got = world.run(ParallelPlan(), mode=pinned(BASE))
    assert outputs(got) == outputs(wanted)
    assert difference(got, wanted) < 1e-5
    assert len({token for output in outputs(got) for token in output}) > 12, "output collapsed"


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        pytest.param(family, tied, marks=() if (family, tied) == EVERY_PLAN else pytest.mark.slow)
        for family in FAMILIES
        for tied in (False, True)
    ],
)
def test_every_feasible_plan_up_to_8_ranks_equals_the_single_rank_with_rungs_drawn_at_random(
    worlds: dict[tuple[str, bool], World], family: str, tied: bool
) -> None:
    world = worlds[(family, tied)]
    single = world.run(ParallelPlan(), mode=pinned(BASE))
    plans = single_replica_plans(world.model, 8)
    assert {str(plan) for plan in plans} > set(NAMED_PLANS)
    assert_equal(world, plans, single)


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("qwen2", True),
        ("qwen3", False),
        pytest.param("mistral", False, marks=pytest.mark.slow),
    ],
)
def test_the_other_families_equal_the_single_rank_with_rungs_drawn_at_random(
    worlds: dict[tuple[str, bool], World], family: str, tied: bool
) -> None:
    world = worlds[(family, tied)]
    single = world.run(ParallelPlan(), mode=pinned(BASE))
    assert_equal(world, [parse_plan(f"{text},shift").plan for text in NAMED_PLANS], single)


def assert_equal(
    world: World, plans: list[ParallelPlan], single: list[DrivenSequence], **options: Any
) -> None:
    """Every plan, its rung drawn, answers what ``single`` has."""
    for plan in plans:
        got = world.run(plan, mode=coin(plan), **options)
        assert outputs(got) == outputs(single), plan
        assert difference(got, single) < 1e-9, plan


@pytest.mark.slow  # the next one has the named plans
@pytest.mark.parametrize(("family", "has_parallel_sampling"), [("llama", True), ("qwen3", False)])
def test_steps_submitted_before_the_ones_they_continue_are_done_give_the_same_on_every_plan(
    worlds: dict[tuple[str, bool], World], family: str, has_parallel_sampling: bool
) -> None:
    world = worlds[(family, False)]
    sampling = {"temperature": 0.9, "top_k": 60, "top_p": 0.95}
    single = world.run(ParallelPlan(), mode=pinned(BASE), **sampling)
    for plan in single_replica_plans(world.model, 8):
        options = {"num_ahead": plan.pp, "has_parallel_sampling": has_parallel_sampling}
        assert_equal(world, [plan], single, **options, **sampling)


@pytest.mark.parametrize("has_parallel_sampling", [True, False])
def test_named_plans_sample_the_same_when_steps_are_submitted_ahead(
    worlds: dict[tuple[str, bool], World], has_parallel_sampling: bool
) -> None:
    world = worlds[("qwen3", False)]
    sampling = {"temperature": 0.9, "top_k": 60, "top_p": 0.95}
    single = world.run(ParallelPlan(), mode=pinned(BASE), **sampling)
    plans = [parse_plan(f"{text},shift").plan for text in NAMED_PLANS]
    options = {"num_ahead": 2, "has_parallel_sampling": has_parallel_sampling}
    assert_equal(world, plans, single, **options, **sampling)


@pytest.mark.parametrize("text", [f"{plan},shift" for plan in NAMED_PLANS])
def test_a_pinned_rung_equals_the_single_rank(
    worlds: dict[tuple[str, bool], World], text: str
) -> None:
    world = worlds[("qwen2", False)]
    single = world.run(ParallelPlan(), mode=pinned(BASE))
    plan = parse_plan(text).plan
    for mode in plan.modes:
        got = world.run(plan, mode=pinned(mode))
        assert outputs(got) == outputs(single), mode
        assert difference(got, single) < 1e-9, mode


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_stays_near_transformers_and_picks_the_same_tokens_unless_they_tie(
    worlds: dict[tuple[str, bool], World], family: str
) -> None:
    world = worlds[(family, False)]
    wanted = world.reference(torch.float32)
    for text in ("tp=1", "sp=2,tp=2,shift", "pp=2,sp=2,tp=2,shift"):
        plan = parse_plan(text).plan
        for got, want in zip(
            world.run(plan, mode=coin(plan), dtype=DType.FLOAT32), wanted, strict=True
        ):
            same_unless_tied(got, want)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_half_precision_runs_in_both_modes_near_the_float64_logits(
    worlds: dict[tuple[str, bool], World], dtype: DType
) -> None:
    world = worlds[("llama", True)]
    exact = world.run(ParallelPlan(), mode=pinned(BASE))
    plan = ParallelPlan(sp=2, tp=2, shift=True)
    for got, want in zip(world.run(plan, mode=coin(plan), dtype=dtype), exact, strict=True):
        first, wanted = got.logits[0], want.logits[0]
        assert abs(first - wanted).max() < 0.2 * abs(wanted).max()


@pytest.mark.parametrize("text", ["sp=8,shift", "sp=4,tp=2,shift", "pp=2,sp=4,shift"])
def test_steps_shorter_than_sp_leave_some_ranks_padding_only(
    worlds: dict[tuple[str, bool], World], text: str
) -> None:
    world = worlds[("qwen3", False)]
    plan = parse_plan(text).plan
    single = world.run(ParallelPlan(), mode=pinned(BASE), budget=3)
    for mode in (pinned(BASE), coin(plan)):
        got = world.run(plan, mode=mode, budget=3)
        assert outputs(got) == outputs(single)
        assert difference(got, single) < 1e-9


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
def test_degrees_that_are_no_powers_of_two_keep_the_order_of_heads_and_vocabulary(
    tmp_path: Path, kv_heads: int
) -> None:
    config = family_config(
        "llama",
        num_attention_heads=12,
        num_key_value_heads=kv_heads,
        hidden_size=96,
        num_hidden_layers=3,
    )
    world = World(write_checkpoint(tmp_path, config))
    single = world.run(ParallelPlan(), mode=pinned(BASE))
    plans = [p for p in single_replica_plans(world.model, 6) if p.stage_size % 3 == 0]
    assert {"sp=2,tp=3,shift", "pp=2,sp=3,shift"} <= {str(plan) for plan in plans}
    assert kv_heads == 3 or "sp=3,tp=2,shift" in {str(plan) for plan in plans}
    for plan in plans:
        got = world.run(plan, mode=coin(plan))
        assert outputs(got) == outputs(single), plan
        assert difference(got, single) < 1e-9, plan


def test_seeded_sampling_is_the_same_on_every_plan_in_every_mode_and_chunking(
    worlds: dict[tuple[str, bool], World],
) -> None:
    world = worlds[("llama", False)]
    sampling = {"temperature": 0.9, "top_k": 60, "top_p": 0.95}
    wanted = outputs(world.run(ParallelPlan(), mode=pinned(BASE), **sampling))
    greedy = outputs(world.run(ParallelPlan(), mode=pinned(BASE)))
    assert wanted != greedy
    for text, budget in itertools.product(("tp=1", "sp=2,tp=2,shift", "pp=2,tp=2"), (5, 40)):
        plan = parse_plan(text).plan
        assert outputs(world.run(plan, mode=coin(plan), budget=budget, **sampling)) == wanted


ANY_RUN = given(
    seed=st.integers(0, 10_000),
    budget=st.integers(1, 30),
    num_ahead=st.integers(0, 3),
    restarts=st.none() | st.integers(0, 10_000),
    text=st.sampled_from(NAMED_PLANS),
)


@settings(max_examples=4)
@ANY_RUN
def test_any_order_of_modes_over_any_chunking_and_any_restarts_gives_the_same_output(
    worlds: dict[tuple[str, bool], World], **run: Any
) -> None:
    assert_same_as_transformers(worlds[("qwen3", True)], **run)


@pytest.mark.slow
@settings(max_examples=40)
@ANY_RUN
def test_many_more_orders_chunkings_and_restarts_give_the_same_output(
    worlds: dict[tuple[str, bool], World], **run: Any
) -> None:
    assert_same_as_transformers(worlds[("qwen3", True)], **run)


def assert_same_as_transformers(
    world: World,
    *,
    seed: int,
    budget: int,
    num_ahead: int,
    restarts: int | None,
    text: str,
) -> None:
    wanted = world.reference(torch.float64)
    plan = parse_plan(f"{text},shift").plan
    got = world.run(
        plan, mode=coin(plan, seed), budget=budget, num_ahead=num_ahead, restarts=restarts
    )
    assert outputs(got) == outputs(wanted)
    assert difference(got, wanted) < 1e-5
