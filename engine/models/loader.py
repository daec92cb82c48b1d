"""Reads Hugging Face checkpoints: single or sharded safetensors, only the slices a rank needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.spec.errors import CheckpointError
from engine.spec.model import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
# Buffers some converters write; they hold nothing that the config does not.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def layer_prefix(layer: int) -> str:
    """Name prefix of decoder layer ``layer``."""
    return f"model.layers.{layer}."


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this model holds, with its shape."""
    shapes = {EMBEDDING: (model.vocab_size, model.hidden_size), FINAL_NORM: (model.hidden_size,)}
    if not model.tie_embeddings:
        shapes[HEAD] = (model.vocab_size, model.hidden_size)
    for layer in range(model.num_layers):
        prefix = layer_prefix(layer)
        shapes |= {prefix + name: shape for name, shape in _layer_shapes(model).items()}
    return shapes


def _layer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn, q_size, kv_size = (
        model.hidden_size,
        model.ffn_size,
        model.q_size,
        model.kv_size,
    )
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if model.qkv_bias:
        shapes |= {
            "self_attn.q_proj.bias": (q_size,),
            "self_attn.k_proj.bias": (kv_size,),
            "self_attn.v_proj.bias": (kv_size,),
        }
    if model.qk_norm:
        shapes |= {
            "self_attn.q_norm.weight": (model.head_dim,),
            "self_attn.k_norm.weight": (model.head_dim,),
        }
    return shapes


class Checkpoint:
    """An opened checkpoint whose names and shapes have been checked against the config.

    Only headers are read until :meth:`read` is called, which maps the bytes it needs.

    Raises:
        CheckpointError: no weights in the folder, an index that cannot be read, a shard file
            that is missing or damaged, a tensor that is missing, misshaped or not of this model.
    """

    def __init__(self, model_dir: Path, model: ModelConfig, *, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._files = _open_files(model_dir)
        # A safetensors file is no mapping: it has keys() and cannot be iterated.
        self._file_of = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118
        self._check(model_dir, model)

    def read(self, name: str, rows: range, columns: range | None = None) -> Tensor:
        """Rows (and columns) of a tensor, converted to the dtype asked for, on the CPU."""
        part = self._file_of[name].get_slice(name)
        if columns is None:
            found = part[rows.start : rows.stop]
        else:
            found = part[rows.start : rows.stop, columns.start : columns.stop]
        assert isinstance(found, Tensor), "safetensors was opened for torch"
        return found.to(self.dtype)

    def _check(self, model_dir: Path, model: ModelConfig) -> None:
        expected = expected_shapes(model)
        for name, shape in expected.items():
            if name not in self._file_of:
                raise CheckpointError(f"{model_dir}: tensor {name} is missing")
            found = tuple(self._file_of[name].get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{model_dir}: tensor {name} has shape {list(found)}, "
                    f"config.json asks for {list(shape)}"
                )
        for name in self._file_of.keys() - expected.keys() - {HEAD}:
            if not name.endswith(IGNORED_SUFFIXES):
                raise CheckpointError(
                    f"{model_dir}: tensor {name} is not part of a {model.model_type} model with "
                    "this config.json; leaving it out would change what the model answers"
                )


def _open_files(model_dir: Path) -> dict[str, Any]:
    """Opened safetensors files by name."""
    index = model_dir / INDEX_FILE
    names = _indexed_files(index) if index.exists() else [SINGLE_FILE]
    return {name: _open(model_dir / name) for name in names}


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: cannot be read as a weight index ({error!r})") from error


def _open(path: Path) -> Any:
    if not path.exists():
        raise CheckpointError(f"{path}: weight file is missing")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
