from __future__ import annotations

import pytest

from engine.spec.errors import PlanError
from engine.spec.model import DType
from engine.spec.modes import BASE, ENDS, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from engine.spec.steps import StepShape
from tests.tuner.worlds import LLAMA_70B
from tuner.hardware import Precision, estimate_memory, paced_timer, parse_hardware
from tuner.spec.errors import TunerError

NODE = parse_hardware("8xh200")


def seconds(plan: ParallelPlan, shape: StepShape) -> float:
    return sum(paced_timer(NODE, LLAMA_70B, plan, DType.BFLOAT16).stage_seconds(shape))


def decode(num_seqs: int, mode: Mode = BASE) -> StepShape:
    return StepShape(
        mode=mode,
        num_seqs=num_seqs,
        num_decode_tokens=num_seqs,
        decode_context_tokens=num_seqs * 4000,
        num_sampled=num_seqs,
    )


def prefill(num_tokens: int, mode: Mode = BASE) -> StepShape:
    return StepShape(
        mode=mode,
        num_seqs=1,
        num_prefill_tokens=num_tokens,
        prefill_context_tokens=num_tokens,
        prefill_attention_pairs=num_tokens * (num_tokens + 1) // 2,
        num_sampled=1,
    )


def test_shift_is_faster_for_small_steps_and_base_for_large_ones() -> None:
    plan = ParallelPlan(sp=8, shift=True)
    assert seconds(plan, decode(1, SHIFT)) < seconds(plan, decode(1, BASE))
    assert seconds(plan, prefill(8192, BASE)) < seconds(plan, prefill(8192, SHIFT))


def test_more_tensor_ranks_decode_faster() -> None:
    times = [seconds(ParallelPlan(tp=tp), decode(16)) for tp in (2, 4, 8)]
    assert times == sorted(times, reverse=True)


def test_each_stage_of_a_pipeline_has_its_time() -> None:
    timer = paced_timer(NODE, LLAMA_70B, ParallelPlan(pp=4, tp=2), DType.BFLOAT16)
    stages = timer.stage_seconds(prefill(1024))
    assert len(stages) == 4
    assert max(stages) < 1.5 * min(stages)


def test_a_longer_step_is_never_faster() -> None:
    for mode in ENDS:
        times = [seconds(ParallelPlan(sp=4, tp=2, shift=True), prefill(n, mode)) for n in
                 (16, 64, 256, 1024, 4096, 16384)]  # fmt: skip
        assert times == sorted(times)


def test_a_plan_larger_than_the_node_or_unfit_for_the_model_is_refused() -> None:
    with pytest.raises(TunerError, match="16 devices"):
        paced_timer(NODE, LLAMA_70B, ParallelPlan(dp=2, tp=8), DType.BFLOAT16)
    with pytest.raises(PlanError, match="query heads"):
        paced_timer(NODE, LLAMA_70B, ParallelPlan(tp=3), DType.BFLOAT16)


@pytest.mark.parametrize("name", ["8xh200", "8xa100", "8xl40s"])
def test_int4_weights_make_decoding_faster_and_prompts_not(name: str) -> None:
    """There is less to read, but products are computed in bf16 and weights unpacked beside them."""
    node, plan = parse_hardware(name), ParallelPlan(tp=8)

    def step_s(precision: Precision, shape: StepShape) -> float:
        return sum(paced_timer(node, LLAMA_70B, plan, precision).stage_seconds(shape))

    few, many = decode(4), prefill(8192)
    assert step_s(Precision.INT4, few) < 0.8 * step_s(Precision.BF16, few)
    assert step_s(Precision.INT4, many) > step_s(Precision.BF16, many)
    # Not faster than the memory is.
    memory = estimate_memory(node.device, LLAMA_70B, plan, Precision.INT4, caps=Caps())
    read_s = memory.weight_bytes / node.device.memory_bytes_per_s
    assert step_s(Precision.INT4, few) > 0.9 * read_s


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.FP8_BLOCK])
def test_what_was_measured_nowhere_is_trusted_less(precision: Precision) -> None:
    device = NODE.device
    assert precision.value not in device.calibration.replace(";", ",").split(", ")
    assert device.interval_for(precision) > device.interval_for(Precision.BF16)


@pytest.mark.parametrize("name", ["8xh200", "8xl40s"])
def test_a_scale_per_block_costs_time_in_prompts_and_in_decodes_and_no_memory(name: str) -> None:
    node, plan = parse_hardware(name), ParallelPlan()

    def step_s(precision: Precision, shape: StepShape) -> float:
        return sum(paced_timer(node, LLAMA_70B, plan, precision).stage_seconds(shape))

    for shape in (decode(4), prefill(8192)):
        ratio = step_s(Precision.FP8_BLOCK, shape) / step_s(Precision.FP8, shape)
        assert 1.1 < ratio < 2.5
    blocks, rows = (
        estimate_memory(node.device, LLAMA_70B, plan, precision, caps=Caps()).weight_bytes
        for precision in (Precision.FP8_BLOCK, Precision.FP8)
    )
    assert blocks == pytest.approx(rows, rel=1e-3)
