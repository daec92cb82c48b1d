from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.spec.feasible import infeasible_reasons
from engine.spec.plan import ParallelPlan
from tuner.spec.errors import TunerError
from tuner.work.models import find_model, find_quantisation, list_models, load_model

# Billions of parameters as published (Qwen's small ones tie embedding and head).
PUBLISHED = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.1-405b": 405.9,
    "llama-3.3-70b": 70.6,
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.0,
    "llama-2-70b": 69.0,
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.61,
    "qwen2.5-14b": 14.8,
    "qwen2.5-32b": 32.8,
    "qwen2.5-72b": 72.7,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "mistral-7b": 7.25,
    "mistral-small-24b": 23.57,
}


def test_every_model_has_as_many_parameters_as_published() -> None:
    assert list_models() == list(PUBLISHED)
    for name, billions in PUBLISHED.items():
        assert load_model(name).num_params / 1e9 == pytest.approx(billions, rel=0.01), name


def test_405b_is_the_model_the_papers_describe() -> None:
    model = load_model("llama-3.1-405b")
    assert (model.num_layers, model.hidden_size, model.ffn_size) == (126, 16_384, 53_248)
    assert (model.num_heads, model.num_kv_heads, model.vocab_size) == (128, 8, 128_256)


@pytest.mark.parametrize(
    ("published", "short"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("Qwen/Qwen3-32B-FP8", "qwen3-32b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small-24b"),
    ],
)
def test_published_names_are_known(published: str, short: str) -> None:
    assert load_model(published) == load_model(short)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert find_model("gpt-9") is None
    with pytest.raises(TunerError, match=r"'gpt-9'.*qwen3-32b"):
        load_model("gpt-9")
    with pytest.raises(TunerError, match=r"did you mean 'llama-3\.1-70b'"):
        load_model("meta-lama/Lama-3.1-70B-Instruct-AWQ")


def test_a_folder_and_its_config_file_describe_the_same_model(tmp_path: Path) -> None:
    raw = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps(raw))
    assert load_model(str(tmp_path)) == load_model(str(config))
    assert load_model(str(config)).ffn_size == 128
    config.write_text(json.dumps(raw | {"model_type": "mamba"}))
    with pytest.raises(TunerError, match="mamba"):
        load_model(str(config))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-70b", "qwen3-8b"])
def test_common_models_run_on_a_whole_node(name: str) -> None:
    assert infeasible_reasons(ParallelPlan(tp=8), load_model(name)) == []


@pytest.mark.parametrize(
    "rope", [{"rope_type": "mrope", "mrope_section": [1, 2]}, {"rope_type": "yarn", "factor": "x"}]
)
def test_no_kind_of_rope_keeps_a_model_from_being_predicted(
    tmp_path: Path, rope: dict[str, object]
) -> None:
    raw = {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 259,
        "rope_scaling": rope,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = load_model(str(tmp_path))
    assert (model.num_layers, model.head_dim, model.max_positions) == (4, 128, 32_768)


RAW = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def compressed(bits: int, kind: str, strategy: str = "group") -> dict[str, object]:
    weights = {"num_bits": bits, "type": kind, "group_size": 128, "strategy": strategy}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
    }


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (None, None),
        ({}, None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": None}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        (compressed(8, "float", strategy="block"), "fp8-block"),
        (compressed(4, "int"), "int4"),
        (compressed(8, "float"), "fp8"),
    ],
)
def test_a_checkpoint_says_how_its_weights_are_quantised(
    tmp_path: Path, entry: object, word: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, "quantization_config": entry}))
    assert load_model(str(tmp_path)).num_layers == 2
    assert find_quantisation(str(tmp_path)) == word


@pytest.mark.parametrize(
    "entry",
    [{"quant_method": "gptq", "bits": 3}, {"quant_method": "mxfp4"}, compressed(8, "int"), "odd"],
)
def test_other_ways_to_quantise_are_refused_with_the_way_out(tmp_path: Path, entry: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, "quantization_config": entry}))
    with pytest.raises(TunerError, match=r"config\.json: weights quantised by .*as in int4 or fp8"):
        find_quantisation(str(tmp_path))


@pytest.mark.parametrize(
    ("published", "word"),
    [
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "int4"),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", "int4"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "int4"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "fp8"),
        ("Qwen/Qwen3-8B-FP8", "fp8-block"),
        ("RedHatAI/Qwen3-8B-FP8-dynamic", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-block", "fp8-block"),
        ("meta-llama/Llama-3.1-8B-Instruct", None),
    ],
)
def test_a_published_name_says_how_its_weights_are_quantised(
    published: str, word: str | None
) -> None:
    assert load_model(published).num_layers in (32, 36, 80)
    assert find_quantisation(published) == word


def test_a_name_that_no_file_may_have_is_an_unknown_one_however_long() -> None:
    long = "llama" + "-chat" * 200_000
    assert find_model(long) is None
    for name in ("m" * 300, long):
        with pytest.raises(TunerError, match="no name is as long"):
            load_model(name)
