"""Random checkpoints in Hugging Face format: real files, real shapes, no training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from engine.models.corpus import (
    BOS_TOKEN,
    CHAT_TEMPLATE,
    EOS_TOKEN,
    SPECIAL_TOKENS,
    TURN_END_TOKEN,
    train_tokenizer,
)
from engine.models.presets import PRESETS, Preset
from engine.spec.errors import CheckpointError
from engine.spec.names import did_you_mean

Float32Array = npt.NDArray[np.float32]
# With the usual 0.02 greedy output collapses to one token, which would hide a broken cache.
# Every matrix gets std = GAIN / sqrt(fan_in): 0.25 at 64 inputs, and finite at any width.
GAIN = 2.0
NORM_SPREAD = 0.1
MAX_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class CreatedModel:
    """What was written: the folder, its weight files and the parameters in them."""

    model_dir: Path
    preset: str
    seed: int
    num_params: int
    weight_files: tuple[str, ...]


def create_model(
    model_dir: Path | str,
    *,
    preset: str,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> CreatedModel:
    """Write a random checkpoint; the same preset and seed give the same bytes.

    Raises:
        CheckpointError: an unknown preset, or a folder that already holds a checkpoint or cannot
            be written to.
    """
    shape = PRESETS.get(preset)
    if shape is None:
        raise CheckpointError(
            f"preset {preset!r} is not known{did_you_mean(preset, PRESETS)}; known: "
            f"{', '.join(PRESETS)}"
        )
    folder = Path(model_dir)
    if (folder / "config.json").exists():
        raise CheckpointError(f"{folder} already holds a checkpoint; name another folder")
    try:
        files = _write_files(folder, shape, seed, max_shard_bytes)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return CreatedModel(
        model_dir=folder,
        preset=preset,
        seed=seed,
        num_params=sum(math.prod(dims) for _, dims in _shapes(shape)) if files else 0,
        weight_files=files,
    )


def _write_files(folder: Path, shape: Preset, seed: int, max_shard_bytes: int) -> tuple[str, ...]:
    """Write the folder; returns the names of its weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _write_weights(folder, shape, seed, max_shard_bytes) if shape.has_weights else ()
    _write_tokenizer(folder, shape)
    # Written last, so that a folder with a config.json is complete.
    _write_json(folder / "generation_config.json", _generation_json())
    _write_json(folder / "config.json", _config_json(shape))
    return files


def _shapes(shape: Preset) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint by its Hugging Face name; matrices are [out, in]."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (shape.q_size, hidden)
        yield prefix + "self_attn.k_proj.weight", (shape.kv_size, hidden)
        yield prefix + "self_attn.v_proj.weight", (shape.kv_size, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, shape.q_size)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (ffn, hidden)
        yield prefix + "mlp.up_proj.weight", (ffn, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab_size, hidden)


def _tensor(dims: tuple[int, ...], seed: int, index: int) -> Float32Array:
    # One generator per tensor: its values do not depend on which others are drawn.
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    values = rng.standard_normal(dims, dtype=np.float32)
    if len(dims) == 1:
        return (1.0 + NORM_SPREAD * values).astype(np.float32)
    return values * np.float32(GAIN / math.sqrt(dims[1]))


def _write_weights(folder: Path, shape: Preset, seed: int, max_shard_bytes: int) -> tuple[str, ...]:
    """Write the tensors in shards; returns the names of their files."""
    shards = _shard_names(shape, max_shard_bytes)
    dims_of = dict(_shapes(shape))
    index_of = {name: index for index, name in enumerate(dims_of)}
    place: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        tensors = {name: _tensor(dims_of[name], seed, index_of[name]) for name in names}
        # Not by save_file, whose files only their owner may read.
        (folder / file).write_bytes(save(tensors, metadata={"format": "pt"}))
        place.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total_bytes = 4 * sum(math.prod(dims) for dims in dims_of.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": place}
        _write_json(folder / "model.safetensors.index.json", index)
    return tuple(dict.fromkeys(place.values()))


def _shard_names(shape: Preset, max_shard_bytes: int) -> list[list[str]]:
    """Tensor names by shard, in order, each shard at most ``max_shard_bytes`` where it can be."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, dims in _shapes(shape):
        size = 4 * math.prod(dims)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_tokenizer(folder: Path, shape: Preset) -> None:
    tokenizer = train_tokenizer(shape.tokenizer_size).to_str(pretty=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS_TOKEN,
            "eos_token": EOS_TOKEN,
            "pad_token": EOS_TOKEN,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.max_positions,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _generation_json() -> dict[str, Any]:
    return {
        "bos_token_id": SPECIAL_TOKENS.index(BOS_TOKEN),
        "eos_token_id": [SPECIAL_TOKENS.index(EOS_TOKEN), SPECIAL_TOKENS.index(TURN_END_TOKEN)],
        "pad_token_id": SPECIAL_TOKENS.index(EOS_TOKEN),
        "do_sample": False,
    }


def _config_json(shape: Preset) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": shape.rope,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": GAIN / math.sqrt(shape.hidden_size),
        "dtype": shape.dtype,
        "bos_token_id": SPECIAL_TOKENS.index(BOS_TOKEN),
        "eos_token_id": SPECIAL_TOKENS.index(EOS_TOKEN),
        "pad_token_id": SPECIAL_TOKENS.index(EOS_TOKEN),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
