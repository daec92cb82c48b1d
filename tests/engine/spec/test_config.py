"""Model configs from real-looking files, caps and KV memory with the numbers in the errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from engine.models.rope import inverse_frequencies
from engine.spec.config import (
    Collectives,
    EngineConfig,
    LinkEmulation,
    num_kv_blocks,
    step_bytes,
)
from engine.spec.config_keys import READ_KEYS
from engine.spec.errors import CheckpointError, EngineError, PlanError
from engine.spec.graphs import graph_bytes
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.rope import KNOWN_PARAMETERS, RopeKind
from engine.spec.settings import Caps
from engine.spec.token_counts import count_bytes

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


NO_ROPE = {k: v for k, v in LLAMA_70B.items() if not k.startswith("rope_")}


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


MISTRAL = {"model_type": "mistral"}


@pytest.mark.parametrize("window", [None, 131_072, 200_000])
def test_a_window_that_no_context_leaves_is_none(window: int | None) -> None:
    model = read(LLAMA_70B | MISTRAL | {"sliding_window": window})
    assert (model.model_type, model.max_positions) == ("mistral", 131_072)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope' is not supported"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"use_sliding_window": True}, "sliding-window attention is not supported"),
        ({"layer_types": ["sliding_attention"] * 80}, "sliding-window attention is not supported"),
        ({"logit_scale": 3.0}, "key 'logit_scale' is not known for llama"),
        ({"quantization_config": {"quant_method": "awq"}}, r"weights are quantised \(awq\)"),
        ({"quantization_config": {"bits": 4}}, r"weights are quantised \(bits 4\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"weights are quantised \(bits 4\)"),
        ({"compression_config": {"format": "int-quantized"}}, r"quantised \(int-quantized\)"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype 'float8_e4m3fn' is not supported"),
        ({"hidden_size": [1]}, r"hidden_size \[1\] is not a whole number"),
        ({"vocab_size": "many"}, 'vocab_size "many" is not a whole number'),
        ({"num_hidden_layers": 1.5}, r"num_hidden_layers 1\.5 is not a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads true is not a whole number"),
        ({"intermediate_size": 2**70}, "intermediate_size 1180591620717411303424 is not from 1"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps "small" is not a number'),
        ({"rms_norm_eps": 0}, "rms_norm_eps 0.0 is not above 0"),
        ({"rope_scaling": [1]}, r"rope_scaling \[1\] is not an object"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, 'factor "x" is not a number'),
        ({"rope_scaling": {"rope_type": "linear"}}, "key 'factor' is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "key 'x' is not known"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5 is not supported"),
        ({"eos_token_id": "two"}, 'eos_token_id "two" is not the id'),
        ({"num_key_value_heads": 7}, "64 query heads do not divide by 7 KV heads"),
        ({"model_type": "qwen3", "mlp_bias": True}, "qwen3 models have no mlp_bias"),
        (MISTRAL | {"sliding_window": 4096}, "sliding_window=4096 below .*=131072: .*to 4096"),
        (MISTRAL, "sliding_window=4096 below max_position_embeddings=131072"),
        (MISTRAL | {"sliding_window": "x"}, "sliding_window=x below"),
        (MISTRAL | {"attention_bias": True}, "mistral models have no attention_bias"),
    ],
)
def test_an_unsupported_config_is_refused_with_its_value(
    change: dict[str, object], message: str
) -> None:
    raw = {k: v for k, v in (LLAMA_70B | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        read(raw)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_null_where_a_number_belongs_is_named(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"key '{key}' is null"):
        read(LLAMA_70B | {key: None})


def test_notes_of_tools_and_keys_that_ask_for_nothing_are_let_through() -> None:
    notes = {"_name_or_path": "x", "use_cache": True, "rope_interleaved": False, "mystery": None}
    assert read(LLAMA_70B | notes) == read(LLAMA_70B)


def test_rope_by_the_kind_of_layer_is_that_of_full_attention() -> None:
    full = {"rope_type": "default", "rope_theta": 5e6}
    model = read(NO_ROPE | {"rope_parameters": {"full_attention": full}})
    assert model.rope_theta == 5e6


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path: Path, family: str) -> None:
    raw = {
        "model_type": family,
        "num_hidden_layers": 2,
        "hidden_size": 2048,
        "intermediate_size": 64,
        "num_attention_heads": 32,
        "vocab_size": 300,
    }
    if family == "mistral":
        raw["sliding_window"] = None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs, ours = AutoConfig.from_pretrained(tmp_path), ModelConfig.from_dir(tmp_path)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 64)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.rms_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(KNOWN_PARAMETERS)), inner, max_size=4)
    ),
    max_leaves=5,
)
ROPE_VALUES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from([*RopeKind])},
    optional=dict.fromkeys(
        sorted(KNOWN_PARAMETERS - {"rope_type", "type"}),
        st.integers(-2, 9) | st.floats() | st.lists(st.floats(0.5, 2), min_size=64, max_size=64),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(READ_KEYS - {"model_type"})) | st.text(max_size=5),
        JSON_VALUES | ROPE_VALUES,
        max_size=4,
    )
    | st.fixed_dictionaries({"rope_scaling": ROPE_VALUES}),
    family=st.sampled_from(["llama", "qwen2", "qwen3", "mistral"]) | JSON_VALUES,
)
def test_whatever_a_config_holds_it_is_read_or_refused_in_one_line(
    changes: dict[str, Any], family: Any
) -> None:
    try:
        model = read(LLAMA_70B | {"model_type": family} | changes)
    except CheckpointError as error:
        assert "config.json" in str(error)  # noqa: PT017 - it need not come to that
        assert "\n" not in str(error)  # noqa: PT017 - it need not come to that
    else:
        assert torch.isfinite(inverse_frequencies(model)).all()


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


def test_kv_blocks_leave_room_for_the_fullest_step_that_the_envelope_allows() -> None:
    model, plan = read(LLAMA_70B), ParallelPlan(tp=4)
    config = EngineConfig(
        model_dir=Path("unused"), dtype=DType.BFLOAT16, device_memory_bytes=141 * 10**9
    )

    def kv_bytes(tokens: int) -> int:
        envelope = Caps(max_num_seqs=64, max_num_batched_tokens=tokens)
        blocks = num_kv_blocks(replace(config, envelope=envelope), model, plan)
        return blocks * config.block_size * model.kv_bytes_per_token(plan, DType.BFLOAT16)

    # A token more takes its hidden state and the FFN's parts at least.
    per_token = 2 * (model.hidden_size + 3 * model.ffn_size // plan.tp)
    assert kv_bytes(8192) - kv_bytes(32_768) >= 0.9 * (32_768 - 8192) * per_token


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


def test_on_cuda_kv_leaves_room_for_graphs_and_everywhere_for_the_counts_of_penalties() -> None:
    model, plan = read(LLAMA_70B), ParallelPlan(tp=4)
    config = EngineConfig(
        model_dir=Path("unused"), dtype=DType.BFLOAT16, device_memory_bytes=141 * 10**9
    )
    cuda = replace(config, device="cuda")
    without = replace(cuda, max_graph_tokens=0)
    assert step_bytes(without, model, plan) == step_bytes(config, model, plan)
    # The driver's part alone: 55 graphs of 80 layers.
    graphs = step_bytes(cuda, model, plan) - step_bytes(without, model, plan)
    assert graphs > 55 * 80 * 16 * 10_240
    assert graphs < 2e9
    # Ranks joined through the host have none, and a rung more has as many again.
    assert step_bytes(replace(cuda, collectives=Collectives.SHM), model, plan) == step_bytes(
        without, model, plan
    )
    ladder = ParallelPlan(sp=2, tp=2, shift=True)
    assert graph_bytes(model, ladder, 512, num_bytes=2) > 1.5 * graph_bytes(
        model, ParallelPlan(sp=2, tp=2), 512, num_bytes=2
    )
    assert num_kv_blocks(cuda, model, plan) < num_kv_blocks(without, model, plan)
    assert count_bytes(1000, 256) == 5 * 1000 * (256 + 128)
    assert graph_bytes(model, plan, 0, num_bytes=2) == 0
