"""Rotary frequencies against those of ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.kernels.rotary import angles_of
from engine.models.rope import inverse_frequencies, rope_table
from engine.spec.model import ModelConfig
from tests.engine.checkpoints import family_config

LLAMA_31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DEFAULT = {"rope_type": "default", "rope_theta": 1_000_000.0}
ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, ORIGINAL: 32_768}
OTHERS: list[dict[str, Any]] = [
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
    {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    YARN,
    YARN | {"beta_fast": 20.0, "beta_slow": 3.0, "truncate": False},
    YARN | {"attention_factor": 1.3},
    YARN | {"mscale": 1.2, "mscale_all_dim": 0.7},
    YARN | {"mscale": 1.2},
    YARN | {"factor": 40.0, ORIGINAL: 4096},
]
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    ORIGINAL: 4096,
    "short_factor": [1 + n / 100 for n in range(64)],
    "long_factor": [1 + n / 2 for n in range(64)],
}


@pytest.mark.parametrize("parameters", [LLAMA_31, DEFAULT, *OTHERS])
def test_frequencies_are_those_of_transformers(tmp_path: Path, parameters: dict[str, Any]) -> None:
    config = family_config(
        "llama", rope_parameters=parameters, head_dim=128, max_position_embeddings=131_072
    )
    config.save_pretrained(tmp_path)
    model = ModelConfig.from_dir(tmp_path)
    theirs = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(
        inverse_frequencies(model), theirs.inv_freq.double(), rtol=1e-6, atol=0
    )
    assert attention_factor(model) == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize("factors", [{}, {"factor": 8.0}, {"attention_factor": 1.2}])
@pytest.mark.parametrize("context", [4096, 4097])
def test_longrope_has_factors_for_short_and_for_long_contexts(
    tmp_path: Path, context: int, factors: dict[str, float]
) -> None:
    config = family_config(
        "llama", rope_parameters=LONGROPE | factors, head_dim=128, max_position_embeddings=131_072
    )
    config.save_pretrained(tmp_path)
    model = ModelConfig.from_dir(tmp_path)
    inv_freq, scaling = ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=context)
    torch.testing.assert_close(
        inverse_frequencies(model, context=context), inv_freq.double(), rtol=1e-6, atol=0
    )
    assert attention_factor(model) == pytest.approx(scaling)


def test_yarn_makes_room_for_the_context_it_stretches_to(tmp_path: Path) -> None:
    config = family_config("qwen3", rope_parameters=YARN, max_position_embeddings=40_960)
    config.save_pretrained(tmp_path)
    assert ModelConfig.from_dir(tmp_path).max_positions == 131_072


def attention_factor(model: ModelConfig) -> float:
    """What the cosine of position 0 is: 1 where attention is not scaled."""
    table = rope_table(model, num_positions=1, dtype=torch.float64, device=torch.device("cpu"))
    return float(angles_of(table, torch.tensor([0])).cos[0, 0, 0])


def test_angles_come_by_position_in_the_dtype_kept(tmp_path: Path) -> None:
    family_config("llama").save_pretrained(tmp_path)
    model = ModelConfig.from_dir(tmp_path)
    positions = torch.tensor([0, 7, 3])
    for dtype, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        table = rope_table(model, num_positions=8, dtype=dtype, device=torch.device("cpu"))
        angles = angles_of(table, positions)
        assert angles.cos.dtype is angles.sin.dtype is kept
        assert angles.cos.shape == angles.sin.shape == (3, 1, model.head_dim)
        assert (angles.cos[0] == 1).all()
        assert (angles.sin[0] == 0).all()
        radians = 7 * inverse_frequencies(model)
        half = model.head_dim // 2
        torch.testing.assert_close(angles.sin[1, 0, half:], radians.sin().to(kept))
        torch.testing.assert_close(angles.sin[1, 0, :half], -radians.sin().to(kept))
