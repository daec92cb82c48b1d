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
# Buffers some converters write; they hold nothing that the config does not.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this model holds, with its shape."""
    names = model.family.names
    shapes = {
        f"{names.embedding}.weight": (model.vocab_size, model.hidden_size),
        f"{names.final_norm}.weight": (model.hidden_size,),
    }
    if not model.tie_embeddings:
        shapes[f"{names.head}.weight"] = (model.vocab_size, model.hidden_size)
    in_layer = _layer_shapes(model)
    for layer in range(model.num_layers):
        shapes |= {names.in_layer(layer, name): shape for name, shape in in_layer.items()}
    return shapes


def _layer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    names = model.family.names
    hidden, ffn, q_size, kv_size = (
        model.hidden_size,
        model.ffn_size,
        model.q_size,
        model.kv_size,
    )
    modules: dict[str, tuple[int, ...]] = {
        names.input_norm: (hidden,),
        names.post_norm: (hidden,),
        names.q: (q_size, hidden),
        names.k: (kv_size, hidden),
        names.v: (kv_size, hidden),
        names.o: (hidden, q_size),
        names.gate: (ffn, hidden),
        names.up: (ffn, hidden),
        names.down: (hidden, ffn),
    }
    if model.qk_norm:
        modules |= {names.q_norm: (model.head_dim,), names.k_norm: (model.head_dim,)}
    shapes = {f"{name}.weight": shape for name, shape in modules.items()}
    if model.qkv_bias:
        shapes |= {f"{name}.bias": modules[name][:1] for name in (names.q, names.k, names.v)}
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
        self._model_dir = model_dir
        self._files = _open_files(model_dir)
        # A safetensors file is no mapping: it has keys() and cannot be iterated.
        self._file_of = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118
        self._check(model_dir, model)

    def read(self, name: str, rows: range, columns: range | None = None) -> Tensor:
        """Rows (and columns) of a tensor, converted to the dtype asked for, on the CPU.

        Raises:
            CheckpointError: one of these values is not finite, or not in that dtype.
        """
        part = self._file_of[name].get_slice(name)
        if columns is None:
            found = part[rows.start : rows.stop]
        else:
            found = part[rows.start : rows.stop, columns.start : columns.stop]
        assert isinstance(found, Tensor), "safetensors was opened for torch"
        converted = found.to(self.dtype)
        # One reduction over what is in the cache: a sum of finite values that overflows is rare,
        # and only then are the values looked at one by one.
        if not bool(converted.sum().isfinite()) and not bool(converted.isfinite().all()):
            raise CheckpointError(f"{self._model_dir}: {_not_finite(name, found, self.dtype)}")
        return converted

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
        # A tied model's file may hold its head a second time.
        head = f"{model.family.names.head}.weight"
        for name in self._file_of.keys() - expected.keys() - {head}:
            if not name.endswith(IGNORED_SUFFIXES):
                raise CheckpointError(
                    f"{model_dir}: tensor {name} is not part of a {model.model_type} model with "
                    "this config.json; leaving it out would change what the model answers"
                )


def _not_finite(name: str, values: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with a tensor that has a value which is not finite in ``dtype``."""
    if bool(values.isfinite().all()):
        word = str(dtype).removeprefix("torch.")
        return f"tensor {name} has values that {word} cannot hold; serve it in a wider dtype"
    return f"tensor {name} has values that are not finite numbers; the file is damaged"


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
