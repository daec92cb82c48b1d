"""Small random checkpoints written by ``transformers``, and its own answers to compare with.

Weights are wide (``initializer_range`` 0.25): with the usual 0.02 greedy output collapses to one
token and hides a broken cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from engine.models.create import create_model
from engine.models.loader import SINGLE_FILE

Logits = npt.NDArray[np.float64]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
}
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


def family_config(family: str, **changes: object) -> PretrainedConfig:
    """The config of a small model of ``family``, with ``changes`` to its shape."""
    shape = SHAPE | changes
    if family == "llama":
        return LlamaConfig(**({"rope_parameters": LLAMA3_ROPE} | shape))
    if family == "qwen2":
        return Qwen2Config(**shape)
    if family == "mistral":
        return MistralConfig(**({"sliding_window": None, "head_dim": 16} | shape))
    return Qwen3Config(**({"head_dim": 16} | shape))


def write_checkpoint(folder: Path, config: PretrainedConfig, *, shard_size: str = "5GB") -> Path:
    """Random weights of ``config`` in ``folder``; biases and norms are random as well."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Greedy continuation of one prompt and the logits each token was chosen from."""

    output: list[int]
    logits: list[Logits]


def reference(
    folder: Path, prompts: Sequence[Sequence[int]], *, max_tokens: int, dtype: torch.dtype
) -> list[Reference]:
    """What ``transformers`` answers, each prompt alone and without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.eval()
    answers = []
    for prompt in prompts:
        ids, logits = list(prompt), []
        for _ in range(max_tokens):
            with torch.no_grad():
                row = model(torch.tensor([ids])).logits[0, -1]
            logits.append(row.double().numpy())
            ids.append(int(row.argmax()))
        answers.append(Reference(output=ids[len(prompt) :], logits=logits))
    return answers


OVERFLOWING_TOKEN = 17


def write_overflowing(folder: Path) -> Path:
    """A checkpoint of finite numbers in which attention to one token overflows, to others not."""
    create_model(folder, preset="tiny", seed=1)
    tensors = load_file(folder / SINGLE_FILE)
    tensors["model.embed_tokens.weight"][:, 0] = 0.0
    tensors["model.embed_tokens.weight"][OVERFLOWING_TOKEN, 0] = 1.0
    tensors["model.layers.0.input_layernorm.weight"][0] = 1e30
    save_file(tensors, folder / SINGLE_FILE)
    return folder
