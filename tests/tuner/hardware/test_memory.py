from __future__ import annotations

import pytest

from engine.config import DType
from engine.plan import ParallelPlan
from tests.tuner.worlds import LLAMA_70B
from tuner.errors import TunerError
from tuner.hardware import (
    Precision,
    estimate_memory,
    list_memory,
    num_device_kv_blocks,
    parse_hardware,
)

H200 = parse_hardware("h200").device


def test_a_70b_model_in_bf16_does_not_fit_one_device_and_the_numbers_say_so() -> None:
    estimate = estimate_memory(H200, LLAMA_70B, ParallelPlan(), DType.BFLOAT16)
    assert estimate.reason is not None
    assert "141 GB" in estimate.reason
    with pytest.raises(TunerError, match="usable"):
        num_device_kv_blocks(H200, LLAMA_70B, ParallelPlan(), DType.BFLOAT16, 16)


def test_tensor_shards_make_room_for_kv() -> None:
    blocks = [
        num_device_kv_blocks(H200, LLAMA_70B, ParallelPlan(tp=tp), DType.BFLOAT16, 16)
        for tp in (2, 4, 8)
    ]
    assert blocks == sorted(blocks)
    assert blocks[-1] * 16 > 2_000_000


def test_fp8_halves_the_layers_and_leaves_embedding_head_and_kv() -> None:
    plan = ParallelPlan(tp=2)
    wide, narrow = (
        estimate_memory(H200, LLAMA_70B, plan, precision)
        for precision in (Precision.BF16, Precision.FP8)
    )
    ends = 2 * LLAMA_70B.embedding_params // 2  # embedding cut over tp, head over the stage
    layers = LLAMA_70B.num_layers * LLAMA_70B.layer_params // 2
    assert wide.weight_bytes == 2 * layers + ends
    assert narrow.weight_bytes == layers + ends
    assert narrow.kv_bytes_per_token == wide.kv_bytes_per_token


def test_every_plan_of_a_node_says_how_many_kv_tokens_it_holds_or_why_none() -> None:
    estimates = list_memory(parse_hardware("8xh200"), LLAMA_70B, Precision.BF16)
    by_plan = {str(e.plan): e for e in estimates}
    assert by_plan["tp=1"].reason is not None
    assert by_plan["tp=8"].reason is None
    # Stages share the weights as tensor shards do, and each keeps only its layers' KV.
    assert by_plan["pp=4,tp=2"].kv_tokens == pytest.approx(by_plan["tp=8"].kv_tokens, rel=0.1)
    # Shift costs no second copy.
    assert by_plan["sp=4,tp=2,shift"].kv_tokens == by_plan["sp=4,tp=2"].kv_tokens
