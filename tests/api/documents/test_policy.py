"""Models as JSON documents, which come back as they went."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.documents.policy import model_from_json, model_to_json
from engine.spec.model import ModelConfig

RAW = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "vocab_size": 259,
    "max_position_embeddings": 256,
    "eos_token_id": [1, 2],
}


@pytest.mark.parametrize(
    "rope",
    [
        None,
        {"rope_type": "yarn", "factor": 4.0},
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
        },
    ],
)
def test_a_model_comes_back_from_its_document(rope: dict[str, Any] | None) -> None:
    model = ModelConfig.from_json(RAW | {"rope_scaling": rope}, where="config.json")
    assert model_from_json(json.loads(json.dumps(model_to_json(model)))) == model


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_method": "fp8", "ignored_layers": ["lm_head"]},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ],
)
def test_a_quantised_model_comes_back_from_its_document(entry: dict[str, Any]) -> None:
    model = ModelConfig.from_json(RAW | {"quantization_config": entry}, where="config.json")
    assert model.quantisation is not None
    assert model_from_json(json.loads(json.dumps(model_to_json(model)))) == model


def test_scaling_of_an_older_document_is_that_of_llama_3() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = ModelConfig.from_json(RAW | {"rope_scaling": llama3}, where="config.json")
    older = model_to_json(model)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions")
    older["rope_scaling"] = {name: older["rope_scaling"][name] for name in names}
    for name in ("o_bias", "mlp_bias"):
        del older[name]
    assert model_from_json(older) == model
