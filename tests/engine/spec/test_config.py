"""Model configs from real-looking files, caps and KV memory with the numbers in the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.spec.config import EngineConfig, LinkEmulation, num_kv_blocks
from engine.spec.errors import CheckpointError, EngineError, PlanError
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps

LLAMA_70B = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": [128001, 128009],
    "torch_dtype": "bfloat16",
}


def read(raw: dict[str, object]) -> ModelConfig:
    return ModelConfig.from_json(raw, where="config.json")


def test_a_published_config_is_read_with_its_size_and_cache_cost() -> None:
    model = read(LLAMA_70B)
    assert model.head_dim == 128
    assert model.num_params == pytest.approx(70.55e9, rel=0.001)
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == 8.0
    assert model.eos_token_ids == (128001, 128009)
    assert model.kv_bytes_per_token(ParallelPlan(), DType.BFLOAT16) == 2 * 80 * 8 * 128 * 2
    # Fewer KV heads than ranks: each rank still caches one whole head.
    assert model.kv_bytes_per_token(ParallelPlan(tp=16), DType.BFLOAT16) == 2 * 80 * 128 * 2


def test_newer_files_keep_rope_under_one_key() -> None:
    raw = {k: v for k, v in LLAMA_70B.items() if k not in ("rope_theta", "rope_scaling")}
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 1234.0}
    assert read(raw).rope_theta == 1234.0
    assert read(raw).rope_scaling is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"use_sliding_window": True}, "sliding-window attention is not supported"),
    ],
)
def test_an_unsupported_config_is_refused_with_its_value(
    change: dict[str, object], message: str
) -> None:
    raw = {k: v for k, v in (LLAMA_70B | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        read(raw)


def test_a_folder_without_a_config_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        ModelConfig.from_dir(tmp_path)


def test_an_end_token_of_either_file_ends_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 128001]}))
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == (128001, 128009, 7)


def test_an_end_token_outside_the_vocabulary_is_left_out() -> None:
    assert read(LLAMA_70B | {"eos_token_id": [-1, 5, 128256]}).eos_token_ids == (5,)


def test_kv_blocks_follow_from_device_memory_and_what_does_not_fit_is_refused() -> None:
    model = read(LLAMA_70B)
    config = EngineConfig(
        model_dir=Path("unused"), dtype=DType.BFLOAT16, device_memory_bytes=141 * 10**9
    )
    tp4, tp8 = (num_kv_blocks(config, model, ParallelPlan(tp=n)) for n in (4, 8))
    assert tp8 > 2 * tp4
    with pytest.raises(PlanError, match="minus 141104775168 bytes of weights"):
        num_kv_blocks(config, model, ParallelPlan())


@pytest.mark.parametrize("field", ["max_num_seqs", "max_num_batched_tokens"])
def test_caps_below_one_are_refused_with_the_value(field: str) -> None:
    with pytest.raises(EngineError, match=f"{field}=0"):
        Caps(**{field: 0})


def test_a_link_reads_latency_and_bandwidth_and_adds_them() -> None:
    link = LinkEmulation.parse("latency_us=20,gbps=8")
    assert link.delay_s(1_000_000) == pytest.approx(20e-6 + 1e-3)
    with pytest.raises(EngineError, match="unknown word 'speed'"):
        LinkEmulation.parse("speed=3")
    with pytest.raises(EngineError, match="'fast' is not a number"):
        LinkEmulation.parse("gbps=fast")
