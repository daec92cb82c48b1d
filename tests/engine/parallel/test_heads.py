"""Head layouts keep the KV cache in place, whatever the degrees."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from engine.parallel.heads import Head, Part, head_layout
from engine.spec.feasible import infeasible_reasons
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan, rank_coords

MODEL = ModelConfig(
    model_type="llama",
    num_layers=2,
    hidden_size=64,
    ffn_size=960,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=100,
    max_positions=64,
)


@st.composite
def models_and_plans(draw: st.DrawFn) -> tuple[ModelConfig, ParallelPlan]:
    kv_heads, group = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    model = replace(MODEL, num_heads=kv_heads * group, num_kv_heads=kv_heads)
    plan = ParallelPlan(sp=draw(st.integers(1, 6)), tp=draw(st.integers(1, 6)))
    assume(not infeasible_reasons(plan, model))
    return model, plan


@given(case=models_and_plans())
def test_both_modes_put_the_same_heads_on_the_same_rank(
    case: tuple[ModelConfig, ParallelPlan],
) -> None:
    model, plan = case
    group = model.num_heads // model.num_kv_heads
    for rank in range(plan.stage_size):
        coords = rank_coords(plan, rank)
        layout = head_layout(model, plan, coords)
        shift = layout.stored[layout.shift_start : layout.shift_start + layout.block]
        # What every SP member sends me in base mode is block s of its send buffer.
        mine = slice(coords.s * layout.block, (coords.s + 1) * layout.block)
        for s in range(plan.sp):
            sender = head_layout(model, plan, replace(coords, s=s))
            assert tuple(sender.stored[i] for i in sender.send[mine]) == shift
        index = coords.shift_index(plan)
        queries = [head.index for head in shift if head.part is Part.Q]
        keys = [head.index for head in shift if head.part is Part.K]
        values = [head.index for head in shift if head.part is Part.V]
        assert [head.part for head in shift] == sorted(
            (head.part for head in shift), key=list(Part).index
        )
        first = index * model.num_heads // plan.stage_size
        assert queries == list(range(first, first + layout.num_q))
        assert keys == values
        assert keys[0] == index * model.num_kv_heads // plan.stage_size
        assert sorted({head // group for head in queries}) == keys


@given(case=models_and_plans())
def test_a_base_shard_stores_each_head_once_and_runs_cover_it(
    case: tuple[ModelConfig, ParallelPlan],
) -> None:
    model, plan = case
    for rank in range(plan.stage_size):
        layout = head_layout(model, plan, rank_coords(plan, rank))
        assert len(set(layout.stored)) == len(layout.stored)
        expected = model.num_heads // plan.tp + 2 * max(1, model.num_kv_heads // plan.tp)
        assert len(layout.stored) == expected
        unrolled = [
            Head(part=run.part, index=index)
            for run in layout.runs()
            for index in range(run.start, run.stop)
        ]
        assert unrolled == list(layout.stored)
        if model.num_kv_heads >= plan.stage_size:
            assert layout.is_send_order
            assert layout.shift_start == rank_coords(plan, rank).s * layout.block
