"""Plans: what a command line may say, rank order, and what a model can run."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.errors import PlanError
from engine.spec.feasible import check_plan, infeasible_reasons, list_plans
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE, SHIFT, Mode, Rung, pinned_mode, read_mode, read_pin
from engine.spec.plan import (
    ParallelPlan,
    padded_vocab_size,
    parse_plan,
    rank_coords,
    rank_of,
    shift_warning,
    stage_layers,
)
from engine.spec.steps import StepShape

MODEL = ModelConfig(
    model_type="llama",
    num_layers=6,
    hidden_size=64,
    ffn_size=96,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=259,
    max_positions=128,
)

degrees = st.integers(1, 6)
plans = st.builds(
    lambda dp, pp, sp, tp, shift: ParallelPlan(dp=dp, pp=pp, sp=sp, tp=tp, shift=shift and sp > 1),
    degrees,
    degrees,
    degrees,
    degrees,
    st.booleans(),
)


@given(plans)
def test_a_plan_reads_back_what_it_writes(plan: ParallelPlan) -> None:
    assert parse_plan(str(plan)).plan == plan


@given(plans)
def test_every_rank_has_its_own_place_and_shift_shards_are_a_permutation(
    plan: ParallelPlan,
) -> None:
    coords = [rank_coords(plan, rank) for rank in range(plan.replica_size)]
    assert [rank_of(plan, c) for c in coords] == list(range(plan.replica_size))
    shards = [c.shift_index(plan) for c in coords if c.p == 0]
    assert sorted(shards) == list(range(plan.stage_size))


def test_the_published_mapping_of_six_ranks_holds() -> None:
    plan = ParallelPlan(sp=3, tp=2, shift=True)
    by_shard = sorted(range(6), key=lambda rank: rank_coords(plan, rank).shift_index(plan))
    assert by_shard == [0, 2, 4, 1, 3, 5]


def test_the_shift_word_sets_its_threshold() -> None:
    spec = parse_plan("sp=4,tp=2,shift=256")
    assert spec.plan == ParallelPlan(sp=4, tp=2, shift=True)
    assert spec.threshold_tokens == 256
    assert parse_plan("sp=2,shift").threshold_tokens is None


def test_a_rung_is_a_view_of_the_plan_and_its_word_sets_its_threshold() -> None:
    spec = parse_plan("sp=12,tp=2,shift=64,3x8=300,6x4=900")
    assert list(spec.plan.modes) == [
        "base",
        "6x4",
        "4x6",
        "3x8",
        "2x12",
        "shift",
    ]
    assert spec.rung_thresholds == ((Mode("6x4"), 900), (Mode("3x8"), 300))
    assert spec.plan.rung(SHIFT) == Rung(sp=1, tp=24)
    assert spec.plan.mode_of(Mode("12x2")) == BASE
    assert ParallelPlan(sp=12, tp=2).modes == (BASE,)


@given(sp=st.integers(1, 99_999), tp=st.integers(1, 99_999))
def test_every_rung_is_read_by_its_name(sp: int, tp: int) -> None:
    rung = Rung(sp=sp, tp=tp)
    assert Rung.parse(read_mode(rung.mode)) == rung
    assert pinned_mode(read_pin(rung.mode)) == rung.mode


@pytest.mark.parametrize("text", ["4x", "0x2", "4x2x1", "04x2", "4X2", "table", "", 4])
def test_what_names_no_mode_is_refused_wherever_it_comes_from(text: object) -> None:
    with pytest.raises(ValueError, match="known: base, shift and rungs such as 4x2"):
        read_mode(text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"mode": text}, StepShape)


@pytest.mark.parametrize("name", ["base", "shift", "4x2"])
def test_a_mode_is_the_same_string_wherever_it_goes(name: str) -> None:
    mode = read_mode(name)
    shape = StepShape(mode=mode)
    assert json.dumps({mode: mode}) == f'{{"{name}": "{name}"}}'
    assert msgspec.json.decode(msgspec.json.encode(shape))["mode"] == name
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=StepShape) == shape
    assert {mode: 1}[read_mode(name)] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sp=2,xp=4", "unknown word 'xp'"),
        ("sp=2,shfit=256", "unknown word 'shfit' .did you mean 'shift'"),
        ("tp=two", "tp='two' is not a whole number"),
        ("tp=2,tp=4", "'tp' stands twice"),
        ("tp=0", "tp=0: a degree is a whole number of at least 1"),
        ("tp=2,shift=8", "shift needs sp > 1"),
        ("", "unknown word ''"),
        ("sp=8,shift,3x3=1", "'3x3' is no rung of sp=8, tp=1"),
        ("sp=8,shift,8x1=1", "'base' has no threshold of its own"),
        ("sp=8,4x2=1", "'4x2' has no threshold of its own; with Shift on"),
        ("sp=8,shift,4x2=1,4x2=2", "'4x2' stands twice"),
        ("sp=8,shift,4x2", "4x2='' is not a whole number"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_with_the_word(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ParallelPlan(sp=3), "8 query heads do not divide by sp\\*tp = 3\\*1 = 3"),
        (ParallelPlan(tp=16), "8 query heads do not divide by sp\\*tp = 1\\*16 = 16"),
        (ParallelPlan(pp=7), "pp=7 stages for 6 layers"),
    ],
)
def test_a_plan_this_model_cannot_run_is_refused_with_the_numbers(
    plan: ParallelPlan, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(plan, MODEL)


def test_kv_heads_that_do_not_divide_are_refused() -> None:
    model = replace(MODEL, num_heads=12, num_kv_heads=3, ffn_size=96)
    assert infeasible_reasons(ParallelPlan(tp=2), model) == [
        "3 KV heads and tp=2: neither divides the other"
    ]
    assert infeasible_reasons(ParallelPlan(sp=2), model) == [
        "3 KV heads per tensor rank and sp=2: neither divides the other"
    ]


def test_plans_with_fewer_kv_heads_than_ranks_are_feasible() -> None:
    for plan in (ParallelPlan(tp=8), ParallelPlan(sp=4, tp=2, shift=True), ParallelPlan(sp=8)):
        assert not infeasible_reasons(plan, MODEL)


@given(st.integers(1, 40), st.integers(1, 8))
def test_uneven_stages_cover_all_layers_in_order_and_differ_by_one(layers: int, pp: int) -> None:
    stages = stage_layers(layers, pp)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    sizes = [len(stage) for stage in stages]
    assert max(sizes) - min(sizes) <= 1


def test_the_vocabulary_is_padded_to_the_ranks() -> None:
    assert padded_vocab_size(259, 4) == 260
    assert padded_vocab_size(256, 8) == 256


def test_the_list_of_plans_is_complete_and_sorted_by_size() -> None:
    found = list_plans(4)
    assert ParallelPlan() in found
    assert ParallelPlan(sp=2, tp=2, shift=True) in found
    assert ParallelPlan(tp=5) not in found
    assert [p.world_size for p in found] == sorted(p.world_size for p in found)
    assert len(found) == len(set(found))
    assert list_plans(4, least_devices=4) == [p for p in found if p.world_size == 4]


def test_a_threshold_below_the_running_sequences_is_warned_about_with_the_numbers() -> None:
    plan = ParallelPlan(sp=4, shift=True)
    warning = shift_warning(plan, 64, 79)
    assert warning is not None
    assert "64" in warning
    assert "79" in warning
    assert shift_warning(plan, 79, 79) is None
    assert shift_warning(ParallelPlan(tp=4), 0, 79) is None
