"""Rotary frequencies against those of ``transformers``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.models.rope import RopeTable, inverse_frequencies
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


@pytest.mark.parametrize("parameters", [LLAMA_31, DEFAULT])
def test_frequencies_are_those_of_transformers(
    tmp_path: Path, parameters: dict[str, float | str]
) -> None:
    config = family_config(
        "llama", rope_parameters=parameters, head_dim=128, max_position_embeddings=131_072
    )
    config.save_pretrained(tmp_path)
    model = ModelConfig.from_dir(tmp_path)
    theirs = LlamaRotaryEmbedding(config).inv_freq.double()
    torch.testing.assert_close(inverse_frequencies(model), theirs, rtol=1e-6, atol=0)


def test_angles_come_by_position_in_the_dtype_kept(tmp_path: Path) -> None:
    family_config("llama").save_pretrained(tmp_path)
    model = ModelConfig.from_dir(tmp_path)
    positions = torch.tensor([0, 7, 3])
    for dtype, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        table = RopeTable(model, num_positions=8, dtype=dtype, device=torch.device("cpu"))
        angles = table.angles(positions)
        assert angles.cos.dtype is angles.sin.dtype is kept
        assert angles.cos.shape == angles.sin.shape == (3, 1, model.head_dim)
        assert (angles.cos[0] == 1).all()
        assert (angles.sin[0] == 0).all()
        radians = 7 * inverse_frequencies(model)
        half = model.head_dim // 2
        torch.testing.assert_close(angles.sin[1, 0, half:], radians.sin().to(kept))
        torch.testing.assert_close(angles.sin[1, 0, :half], -radians.sin().to(kept))
