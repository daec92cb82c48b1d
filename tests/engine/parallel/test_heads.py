"""Head layouts keep the KV cache in place, whatever the degrees."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from engine.parallel.heads import Head, Part, head_layout
from engine.parallel.mesh import group_members
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


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


@st.composite
def models_and_plans(draw: st.DrawFn) -> tuple[ModelConfig, ParallelPlan]:
    kv_heads, group = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    ranks = draw(st.sampled_from(_divisors(kv_heads * group, 72)))
    tp = draw(st.sampled_from(_divisors(ranks, 6)))
    sp = ranks // tp
    model = replace(MODEL, num_heads=kv_heads * group, num_kv_heads=kv_heads, ffn_size=16 * ranks)
    plan = ParallelPlan(sp=sp, tp=tp, shift=sp > 1)
    assume(not infeasible_reasons(plan, model))
    return model, plan


@given(case=models_and_plans())
def test_every_mode_puts_the_same_heads_on_the_same_rank(
    case: tuple[ModelConfig, ParallelPlan],
) -> None:
    model, plan = case
    group = model.num_heads // model.num_kv_heads
    layouts = [head_layout(model, plan, rank_coords(plan, rank)) for rank in range(plan.stage_size)]
    for rank, layout in enumerate(layouts):
        index = rank_coords(plan, rank).shift_index(plan)
        first = index * model.num_heads // plan.stage_size
        first_kv = index * model.num_kv_heads // plan.stage_size
        block = [
            *(Head(part=Part.Q, index=first + i) for i in range(layout.num_q)),
            *(Head(part=Part.K, index=first_kv + i) for i in range(layout.num_kv)),
            *(Head(part=Part.V, index=first_kv + i) for i in range(layout.num_kv)),
        ]
        queries = [head.index // group for head in block if head.part is Part.Q]
        assert sorted(set(queries)) == [head.index for head in block if head.part is Part.K]
        members = group_members(plan, rank)
        for mode in plan.modes:
            # What every member of the sequence group sends me is my block, in this order.
            sequence = members.sequence(mode)
            place = sequence.index(rank)
            for peer in sequence:
                view = layouts[peer].views[mode]
                held = layouts[peer].stored[view.start : view.stop]
                sent = view.send[place * layout.block : (place + 1) * layout.block]
                assert [held[i] for i in sent] == block


@given(case=models_and_plans())
def test_the_view_of_a_mode_holds_the_heads_of_its_tensor_shard_and_no_others(
    case: tuple[ModelConfig, ParallelPlan],
) -> None:
    model, plan = case
    group = model.num_heads // model.num_kv_heads
    for rank in range(plan.stage_size):
        layout = head_layout(model, plan, rank_coords(plan, rank))
        for mode in plan.modes:
            view, tp = layout.views[mode], plan.rung(mode).tp
            held = layout.stored[view.start : view.stop]
            t = group_members(plan, rank).tensor(mode).index(rank)
            num_q = model.num_heads // tp
            assert {head.index for head in held if head.part is Part.Q} == set(
                range(t * num_q, (t + 1) * num_q)
            )
            for part in (Part.K, Part.V):
                kept = [head.index for head in held if head.part is part]
                assert sorted(kept) == sorted(
                    {q // group for q in range(t * num_q, (t + 1) * num_q)}
                )


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
            assert all(view.is_send_order for view in layout.views.values())
