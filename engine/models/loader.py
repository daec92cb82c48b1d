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
# How safetensors calls the formats whose numbers are the weights themselves.
PLAIN_FORMATS = frozenset({"F64", "F32", "F16", "BF16"})
# What files of the model without its head leave out at the beginning of names.
MODEL_PREFIX = "model."
# Rows compared at once of an embedding and a head that may be equal.
ROWS_COMPARED = 4096


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
    with_bias = [names.q, names.k, names.v] if model.qkv_bias else []
    with_bias += [names.o] if model.o_bias else []
    with_bias += [names.gate, names.up, names.down] if model.mlp_bias else []
    return shapes | {f"{name}.bias": modules[name][:1] for name in with_bias}


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
        self._places = {
            name: (file, name)
            for file in self._files.values()
            # A safetensors file is no mapping: it has keys() and cannot be iterated.
            for name in file.keys()  # noqa: SIM118
        }
        self._complete_names(model)
        self.is_tied = model.tie_embeddings and self._has_one_vocabulary(model)
        self._check(model)

    def read(self, name: str, rows: range, columns: range | None = None) -> Tensor:
        """Rows (and columns) of a tensor, converted to the dtype asked for, on the CPU.

        Raises:
            CheckpointError: one of these values is not finite, or not in that dtype.
        """
        part = self._slice(name)
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

    def _slice(self, name: str) -> Any:
        file, stored_name = self._places[name]
        return file.get_slice(stored_name)

    def _complete_names(self, model: ModelConfig) -> None:
        """Files of a model without its head name tensors without the prefix of the whole one."""
        names = model.family.names
        if not names.embedding.startswith(MODEL_PREFIX):
            return
        if any(name.startswith(MODEL_PREFIX) for name in self._places):
            return
        self._places = {
            name if name == f"{names.head}.weight" else MODEL_PREFIX + name: place
            for name, place in self._places.items()
        }

    def _has_one_vocabulary(self, model: ModelConfig) -> bool:
        """Whether a tied model's file agrees: it holds one of embedding and head, or both equal.

        Where they differ the file goes before the config, as in transformers.
        """
        embedding, head = _ends(model)
        shape = (model.vocab_size, model.hidden_size)
        if head not in self._places:
            if embedding in self._places:
                self._places[head] = self._places[embedding]
            return True
        if embedding not in self._places:
            self._places[embedding] = self._places[head]
            return True
        for name in (embedding, head):
            self._check_tensor(name, shape)
        for start in range(0, model.vocab_size, ROWS_COMPARED):
            stop = min(start + ROWS_COMPARED, model.vocab_size)
            a, b = (self._slice(name)[start:stop] for name in (embedding, head))
            if not torch.equal(a, b):
                return False
        return True

    def _check(self, model: ModelConfig) -> None:
        expected = expected_shapes(model) | dict.fromkeys(
            _ends(model), (model.vocab_size, model.hidden_size)
        )
        for name, shape in expected.items():
            self._check_tensor(name, shape)
        for name in self._places.keys() - expected.keys():
            if not name.endswith(IGNORED_SUFFIXES):
                raise CheckpointError(
                    f"{self._model_dir}: tensor {name} is not part of a {model.model_type} model "
                    "with this config.json; leaving it out would change what the model answers"
                )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._places:
            raise CheckpointError(f"{self._model_dir}: tensor {name} is missing")
        found = self._slice(name)
        if (stored := str(found.get_dtype())) not in PLAIN_FORMATS:
            raise CheckpointError(
                f"{self._model_dir}: tensor {name} is quantised ({stored}); only weights in "
                "float32, bfloat16 and float16 can be read"
            )
        if (dims := tuple(found.get_shape())) != shape:
            raise CheckpointError(
                f"{self._model_dir}: tensor {name} has shape {list(dims)}, "
                f"config.json asks for {list(shape)}"
            )


def _ends(model: ModelConfig) -> tuple[str, str]:
    """The names of embedding and head."""
    names = model.family.names
    return f"{names.embedding}.weight", f"{names.head}.weight"


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
    return {name: open_weights(model_dir / name) for name in names}


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
        if not all(_is_file_name(name) for name in names):
            raise ValueError("a value is not the name of a file in this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read as a weight index ({error!r})") from error
    return names


def _is_file_name(name: object) -> bool:
    """Whether ``name`` stays in its folder, and can be looked for at all."""
    return isinstance(name, str) and name.isprintable() and Path(name).name == name


def open_weights(path: Path) -> Any:
    """The opened file, which is a context manager too.

    Raises:
        CheckpointError: it is missing, or no such file.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: weight file is missing")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
