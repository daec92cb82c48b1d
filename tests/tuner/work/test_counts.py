from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.model import DType
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.tuner.worlds import LLAMA_70B
from tuner.work.counts import CollectiveKind, StageWork, WorkCounter, layer_shapes


def work_of(plan: ParallelPlan, mode: Mode, num_tokens: int, stage: int = 0) -> StageWork:
    shape = StepShape(mode=mode, num_seqs=1, num_prefill_tokens=num_tokens, num_sampled=1)
    return WorkCounter(LLAMA_70B, plan, DType.BFLOAT16).stage(shape, stage)


def products_flops(work: StageWork) -> float:
    """Floating point operations of the layers' products."""
    return 2.0 * work.layers * work.rows * work.layer.weights


def test_one_rank_has_no_collectives_and_all_the_weights() -> None:
    work = work_of(ParallelPlan(), BASE, 100)
    assert work.collectives == ()
    assert work.layer.weights == LLAMA_70B.layer_params


def test_base_and_shift_multiply_equally_much_on_each_rank() -> None:
    plan = ParallelPlan(sp=4, tp=2, shift=True)
    base, shift = (work_of(plan, mode, 4096) for mode in (BASE, SHIFT))
    assert products_flops(base) == pytest.approx(products_flops(shift))
    assert base.layer.weights == 4 * shift.layer.weights
    layers = 2.0 * 4096 * LLAMA_70B.num_layers * LLAMA_70B.layer_params / 8
    assert products_flops(shift) == pytest.approx(layers)


@pytest.mark.parametrize("num_tokens", [1, 100, 4096])
def test_a_rung_does_the_work_of_the_plan_with_its_degrees(num_tokens: int) -> None:
    ladder = ParallelPlan(sp=8, shift=True)
    for mode in ladder.modes:
        rung = ladder.rung(mode)
        plain = work_of(ParallelPlan(sp=rung.sp, tp=rung.tp), BASE, num_tokens)
        assert work_of(ladder, mode, num_tokens) == plain


def test_a_shard_that_begins_amid_the_users_of_a_kv_head_needs_both_its_neighbours() -> None:
    three = replace(LLAMA_70B, num_heads=12, num_kv_heads=3)
    widths = [layer_shapes(three, degree).qkv.n // three.head_dim for degree in (1, 2, 3, 6)]
    assert widths == [12 + 6, 6 + 4, 4 + 2, 2 + 2]


def test_stages_divide_the_work_of_a_step() -> None:
    whole = products_flops(work_of(ParallelPlan(tp=8), BASE, 1024))
    for stage in (0, 1):
        half = products_flops(work_of(ParallelPlan(pp=2, tp=8), BASE, 1024, stage))
        assert half == pytest.approx(whole / 2)


def test_padding_counts_as_rows() -> None:
    plan = ParallelPlan(sp=8)
    assert work_of(plan, BASE, 1).rows == 1
    assert work_of(plan, BASE, 9).rows == 2


def test_where_the_last_layer_ends_early_only_sampled_rows_are_summed_in_it() -> None:
    counter = WorkCounter(LLAMA_70B, ParallelPlan(tp=2), DType.BFLOAT16, ends_early=True)
    for sampled, whole_layers in ((2, 79), (0, 79), (512, 80)):
        shape = StepShape(num_seqs=1, num_prefill_tokens=512, num_sampled=sampled)
        work = counter.stage(shape, 0)
        sums = [c for c in work.collectives if c.kind is CollectiveKind.ALL_REDUCE]
        rows = sum(c.count * c.num_bytes for c in sums) / (2 * 8192)
        # Twice a layer, and once the embedding.
        assert rows == 2 * (512 * whole_layers + sampled * (80 - whole_layers)) + 512
        assert work.finished_rows == sampled


def test_a_tensor_layer_reduces_twice_and_a_sequence_layer_exchanges_twice() -> None:
    shift = work_of(ParallelPlan(sp=8, shift=True), SHIFT, 64)
    base = work_of(ParallelPlan(sp=8), BASE, 64)
    reductions = [c for c in shift.collectives if c.kind is CollectiveKind.ALL_REDUCE]
    assert reductions[0].count == 2 * 80
    exchanges = [c for c in base.collectives if c.kind is CollectiveKind.ALL_TO_ALL and c.count > 1]
    assert sum(c.count for c in exchanges) == 2 * 80
    # Per layer, over P ranks: (n/P) * (2 d + 2 d_kv') * b bytes (PAPERS, section B).
    assert sum(c.num_bytes for c in exchanges) == 8 * (2 * 8192 + 2 * 8 * 128) * 2


def test_only_the_last_stage_samples() -> None:
    plan = ParallelPlan(pp=2)
    first, last = (work_of(plan, BASE, 64, stage) for stage in (0, 1))
    assert (first.sampled, last.sampled) == (0, 1)
    assert first.layers + last.layers == 80
    assert [c.kind for c in last.collectives] == [CollectiveKind.SEND]
