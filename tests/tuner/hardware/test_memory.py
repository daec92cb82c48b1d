from __future__ import annotations

import pytest

from engine.config import DType
from engine.plan import ParallelPlan
from tests.tuner.worlds import LLAMA_70B
from tuner.errors import TunerError
from tuner.hardware import estimate_memory, num_device_kv_blocks, parse_hardware

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
