"""How ``config.json`` says that weights are quantised, and what is planned for them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest

from engine.spec.errors import CheckpointError
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from tests.engine.quantised_checkpoints import KINDS, W8A8

RAW = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def read(entry: dict[str, object]) -> ModelConfig:
    return ModelConfig.from_json(RAW | {"quantization_config": entry}, where="config.json")


def test_layers_named_as_plain_are_planned_as_plain() -> None:
    def planned(**changes: object) -> int:
        model = read(FP8 | changes)
        assert model.quantisation is not None
        kept = replace(model, quantisation=replace(model.quantisation, is_kept=True))
        return kept.weight_bytes_per_rank(ParallelPlan(), DType.BFLOAT16)

    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    ends = 2 * 2 * 256 * 4096
    # A byte each, and four for every 128 of a row.
    assert planned() == 32 * (layer + layer // 32) + ends
    down = 32 * 4096 * 14_336
    for names in (["lm_head", "model.layers.3.mlp.down_proj"], [r"re:.*\.3\.mlp\.down"]):
        assert planned(modules_to_not_convert=names) == planned() + down - down // 32


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"a block of \[128\] is not rows"),
        ({"quant_method": "fp8", "weight_block_size": [128, 96]}, "blocks of 96 columns"),
        ({"quant_method": "fp8", "activation_scheme": "odd"}, "activation_scheme 'odd'"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:("]}, "modules_to_not_convert"),
        ({"quant_method": "fp8", "hadamard": True}, "key 'hadamard' is not known"),
        ({"quant_method": "compressed-tensors"}, "config_groups name 0 ways"),
        (
            KINDS["compressed-int8"].entry | {"format": "pack-quantized"},
            "format 'pack-quantized' is not supported",
        ),
        (
            KINDS["compressed-channel"].entry
            | {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            "4-bit int is not supported",
        ),
        (
            KINDS["compressed-channel"].entry
            | {"config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "group"}}}},
            "strategy 'group' is not supported",
        ),
        (
            KINDS["compressed-channel"].entry | {"sparsity_config": {"format": "sparse-24"}},
            "format 'sparse-24' is not supported",
        ),
    ],
)
def test_another_way_to_quantise_is_refused_by_its_word(
    entry: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(entry)


def test_activations_are_rounded_where_each_token_is_to_get_a_scale_of_its_own() -> None:
    def read_with(**changes: object) -> WeightFormat:
        entry = deepcopy(W8A8.entry)
        entry["config_groups"]["group_0"]["input_activations"] |= changes
        found = read(entry).quantisation
        assert found is not None
        return found.format

    assert read_with() is WeightFormat.W8A8
    for other in ({"dynamic": False}, {"strategy": "tensor"}, {"symmetric": False}):
        assert read_with(**other) is WeightFormat.INT8
    assert read_with(type="float") is WeightFormat.INT8
    both = deepcopy(W8A8.entry)
    both["config_groups"] |= KINDS["compressed-int8"].entry["config_groups"] | {
        "group_1": both["config_groups"]["group_0"]
    }
    assert read(both).quantisation == read(KINDS["compressed-int8"].entry).quantisation


def test_int8_weights_meet_rounded_activations_or_whole_ones_as_is_asked() -> None:
    published = read(W8A8.entry)
    assert published.quantised(WeightFormat.W8A8) == published
    whole = published.quantised(WeightFormat.INT8)
    assert whole == read(KINDS["compressed-int8"].entry)
    assert whole.quantised(WeightFormat.W8A8) == published


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    model = read(FP8)
    assert model.quantised(WeightFormat.FP8) == model
    with pytest.raises(CheckpointError, match=r"are in fp8 already, .*leave --quantization out"):
        model.quantised(WeightFormat.INT8)
