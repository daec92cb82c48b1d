from __future__ import annotations

import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.tuner.worlds import LLAMA_70B
from tuner.hardware import Precision, SampleKind, SamplerSpec, paced_timer, parse_hardware, sample_s
from tuner.hardware.roofline import StageSeconds

NODE = parse_hardware("8xh100")
GREEDY, PLAIN, FULL = SampleKind


def stage(sampler: SamplerSpec | None, *, tp: int = 8, num_seqs: int = 128) -> StageSeconds:
    shape = StepShape(
        num_seqs=num_seqs,
        num_decode_tokens=num_seqs,
        decode_context_tokens=num_seqs * 1000,
        num_sampled=num_seqs,
    )
    timer = paced_timer(NODE, LLAMA_70B, ParallelPlan(tp=tp), Precision.BF16, sampler=sampler)
    found = timer.breakdown(shape, 0)
    assert found.total_s == pytest.approx(timer.stage_seconds(shape)[0])
    return found


def test_a_sort_costs_more_than_drawing_and_drawing_more_than_the_largest() -> None:
    times = [sample_s(NODE.device, 128, 128_256, kind) for kind in SampleKind]
    assert times == sorted(times)
    assert times[-1] > 3 * times[1]
    assert sample_s(NODE.device, 0, 128_256, FULL) == 0.0


def test_without_a_sampler_no_time_of_one_is_counted() -> None:
    assert stage(None).sampling_s == 0.0


def test_sampling_in_one_place_does_not_shrink_with_ranks_and_shared_sampling_does() -> None:
    gathered = [stage(SamplerSpec(kind=FULL), tp=tp).sampling_s for tp in (2, 8)]
    shared = [stage(SamplerSpec(kind=FULL, is_parallel=True), tp=tp).sampling_s for tp in (2, 8)]
    assert gathered[0] == gathered[1]
    assert gathered[1] > 3 * shared[0] / 2
    assert shared[0] > 3 * shared[1]


def test_shared_sampling_moves_less_than_gathered_logits() -> None:
    moved = [
        stage(SamplerSpec(kind=kind, is_parallel=is_parallel)).communication_s
        for kind, is_parallel in ((PLAIN, False), (PLAIN, True), (GREEDY, True))
    ]
    assert moved == sorted(moved, reverse=True)


def test_one_row_on_many_ranks_is_sampled_by_one_of_them() -> None:
    assert SamplerSpec(kind=PLAIN, is_parallel=True).rows(1, 8) == 1.0
    assert SamplerSpec(kind=PLAIN, is_parallel=True).rows(9, 8) == 2.0
    assert SamplerSpec(kind=PLAIN).rows(9, 8) == 9.0
