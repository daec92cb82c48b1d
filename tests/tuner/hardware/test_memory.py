from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.activations import activation_bytes
from engine.spec.feasible import infeasible_reasons, list_plans
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Caps
from tests.tuner.worlds import LLAMA_70B
from tuner.hardware import (
    Precision,
    estimate_memory,
    parse_hardware,
)
from tuner.work.models import load_model

H200 = parse_hardware("h200").device
GIB = 2**30
CAPS = Caps(max_num_seqs=1024, max_num_batched_tokens=8192)
FEW_ROWS = Caps(max_num_seqs=1, max_num_batched_tokens=8192)


def test_a_70b_model_in_bf16_does_not_fit_one_device_and_the_numbers_say_so() -> None:
    estimate = estimate_memory(H200, LLAMA_70B, ParallelPlan(), DType.BFLOAT16, caps=CAPS)
    assert estimate.reason is not None
    assert "141 GB of weights" in estimate.reason
    assert estimate.reason.endswith("use more tensor or pipeline ranks or a narrower number format")
    assert "usable" in estimate.reason


def test_tensor_shards_make_room_for_kv() -> None:
    plans = [ParallelPlan(tp=tp) for tp in (2, 4, 8)]
    tokens = [
        estimate_memory(H200, LLAMA_70B, plan, DType.BFLOAT16, caps=CAPS).kv_tokens
        for plan in plans
    ]
    assert tokens == sorted(tokens)
    assert tokens[-1] > 2_000_000


def test_fp8_halves_the_layers_and_leaves_embedding_head_activations_and_kv() -> None:
    plan = ParallelPlan(tp=2)
    wide, narrow = (
        estimate_memory(H200, LLAMA_70B, plan, precision, caps=CAPS)
        for precision in (Precision.BF16, Precision.FP8)
    )
    ends = 2 * LLAMA_70B.embedding_params // 2  # embedding cut over tp, head over the stage
    layers = LLAMA_70B.num_layers * LLAMA_70B.layer_params // 2
    assert wide.weight_bytes == 2 * layers + ends
    assert narrow.weight_bytes == layers + ends
    assert narrow.activation_bytes == wide.activation_bytes
    assert narrow.kv_bytes_per_token == wide.kv_bytes_per_token


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen2.5-72b"])
def test_int4_counts_scales_and_zero_points_and_leaves_both_ends_in_two_bytes(model: str) -> None:
    """For 128 weights: 64 bytes, a scale of 2 and a zero point of half a byte."""
    shape = load_model(model)
    groups = shape.num_layers * shape.layer_params // 128
    estimate = estimate_memory(H200, shape, ParallelPlan(), Precision.INT4, caps=CAPS)
    assert estimate.weight_bytes == groups * 66.5 + 2 * shape.embedding_params
    wide = estimate_memory(H200, shape, ParallelPlan(), Precision.BF16, caps=CAPS)
    assert estimate.kv_bytes_per_token == wide.kv_bytes_per_token


def test_every_plan_of_a_node_says_how_many_kv_tokens_it_holds_or_why_none() -> None:
    by_plan = {
        str(plan): estimate_memory(H200, LLAMA_70B, plan, Precision.BF16, caps=CAPS)
        for plan in list_plans(8)
        if not infeasible_reasons(plan, LLAMA_70B)
    }
    assert by_plan["tp=1"].reason is not None
    assert by_plan["tp=8"].reason is None
    # Stages share the weights as tensor shards do, and each keeps only its layers' KV.
    assert by_plan["pp=4,tp=2"].kv_tokens == pytest.approx(by_plan["tp=8"].kv_tokens, rel=0.1)
    # Shift costs no second copy.
    assert by_plan["sp=4,tp=2,shift"].kv_tokens == by_plan["sp=4,tp=2"].kv_tokens


@pytest.mark.parametrize(
    ("model", "precision", "tp", "kv_gib"),
    [
        ("llama-3.3-70b", Precision.FP8, 2, 32.0),
        ("llama-3.3-70b", Precision.FP8, 1, -1.44),
        ("llama-3.1-8b", Precision.BF16, 1, 51.38),
        ("qwen3-32b", Precision.BF16, 1, 4.45),
        ("qwen3-32b", Precision.BF16, 2, 34.49),
    ],
)
def test_room_for_kv_is_what_vllm_logs_when_it_starts_on_h100(
    model: str, precision: Precision, tp: int, kv_gib: float
) -> None:
    """vLLM 0.11 with its default caps: llm-d/llm-d-benchmark, config_explorer (2025). Bytes per
    sampled logit and of the runtime are from these logs, the rest is not."""
    device, plan = parse_hardware("h100").device, ParallelPlan(tp=tp)
    estimate = estimate_memory(device, load_model(model), plan, precision, caps=CAPS)
    assert estimate.kv_bytes / GIB == pytest.approx(kv_gib, abs=0.1)


def test_larger_steps_and_more_rows_leave_less_room_for_kv() -> None:
    def tokens(caps: Caps) -> int:
        plan = ParallelPlan(tp=8)
        return estimate_memory(H200, LLAMA_70B, plan, Precision.FP8, caps=caps).kv_tokens

    assert tokens(replace(CAPS, max_num_batched_tokens=131_072)) < tokens(CAPS)
    assert tokens(CAPS) < tokens(replace(CAPS, max_num_seqs=256))


def _bytes(
    plan: str, caps: Caps = FEW_ROWS, *, model: ModelConfig = LLAMA_70B, in_parallel: bool = False
) -> int:
    parsed = parse_plan(plan).plan
    return activation_bytes(model, parsed, caps, num_bytes=2, samples_in_parallel=in_parallel)


def test_tensor_ranks_cut_the_ffn_and_keep_every_hidden_state() -> None:
    d, ffn, tokens = LLAMA_70B.hidden_size, LLAMA_70B.ffn_size, 8192
    assert _bytes("tp=1") == 2 * tokens * (d + 3 * ffn)
    assert _bytes("tp=2") == 2 * tokens * (d + 3 * ffn // 2)
    # With narrow shards the all-reduce is the fullest moment: residual, its input, its output.
    assert _bytes("tp=8") == 2 * tokens * 3 * d


def test_sequence_ranks_cut_the_step() -> None:
    assert _bytes("sp=8") == _bytes("tp=1") // 8
    assert _bytes("sp=8") < _bytes("tp=8")
    # A slice is padded to whole rows.
    assert _bytes("sp=8", replace(FEW_ROWS, max_num_batched_tokens=8185)) == _bytes("sp=8")


def test_both_ends_of_an_all_to_all_are_held_where_they_outgrow_the_mlp() -> None:
    narrow = replace(LLAMA_70B, ffn_size=1024)
    q, kv = narrow.q_size // 8, 2 * narrow.head_dim
    assert _bytes("sp=8", model=narrow) == 2 * 8192 * (2 * (q + kv) + narrow.hidden_size // 8)


def test_a_pipeline_stage_also_holds_its_next_input() -> None:
    assert _bytes("pp=2,tp=4") - _bytes("tp=4") == 2 * 8192 * 2 * LLAMA_70B.hidden_size


def test_a_shift_plan_keeps_room_for_shift_steps_larger_than_its_slices() -> None:
    short = replace(FEW_ROWS, max_num_batched_tokens=2048)
    assert _bytes("sp=8,shift", short) == _bytes("tp=8", short) > _bytes("sp=8", short)
    assert _bytes("sp=8,shift") == _bytes("sp=8")


def test_ranks_that_share_the_sampling_hold_fewer_logits() -> None:
    assert _bytes("tp=8", CAPS, in_parallel=True) < _bytes("tp=8", CAPS)
    assert _bytes("tp=1", CAPS, in_parallel=True) == _bytes("tp=1", CAPS)


def test_a_plan_that_only_its_caps_keep_from_fitting_says_to_lower_them() -> None:
    h100, plan = parse_hardware("h100").device, ParallelPlan(tp=2)
    model, needed = load_model("llama-3.1-70b"), 16
    wide = replace(CAPS, max_num_batched_tokens=131_072)
    estimate = estimate_memory(
        h100, model, plan, Precision.BF16, caps=wide, needed_kv_tokens=needed
    )
    assert estimate.reason is not None
    assert "max_num_batched_tokens=131072" in estimate.reason
    assert "lower max_num_batched_tokens or max_num_seqs, or use more" in estimate.reason
    low = Caps(max_num_seqs=64, max_num_batched_tokens=2048)
    estimate = estimate_memory(h100, model, plan, Precision.BF16, caps=low, needed_kv_tokens=needed)
    assert estimate.reason is None
