"""Reads Hugging Face checkpoints: single or sharded safetensors, only the slices a rank needs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.models.scales import (
    OTHER_SCALES,
    STORED_FORMATS,
    ScaleGrid,
    scale_grid,
    scale_names,
)
from engine.models.shapes import ends, expected_shapes, layer_matrices
from engine.parallel.quantised import Quantised, quantise
from engine.spec.errors import CheckpointError
from engine.spec.model import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Buffers some converters write; they hold nothing that the config does not.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
# How safetensors calls the formats whose numbers are the weights themselves.
PLAIN_FORMATS = frozenset({"F64", "F32", "F16", "BF16"})
# The beginning of names that files of a model without its head leave out.
MODEL_PREFIX = "model."
# What a system takes as the name of a file.
MOST_NAME_BYTES = 255
# Rows compared at once of an embedding and a head that may be equal.
ROWS_COMPARED = 4096


class Checkpoint:
    """An opened checkpoint whose names and shapes have been checked against the config.

    Only headers are read until :meth:`read` is called, which maps the bytes it needs.

    Raises:
        CheckpointError: no weights in the folder or two of them, an index that cannot be read, a
            shard file that is missing or damaged, a tensor that is missing, misshaped or not of
            this model.
    """

    def __init__(self, model_dir: Path, model: ModelConfig, *, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._model_dir = model_dir
        self._quantisation = model.quantisation
        self._shapes = expected_shapes(model) | dict.fromkeys(
            ends(model), (model.vocab_size, model.hidden_size)
        )
        self._matrices = layer_matrices(model)
        self._head = ends(model)[1]
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
        """Rows (and columns) of a tensor, converted to the dtype asked for, on the CPU; quantised
        ones are made plain.

        Raises:
            CheckpointError: one of these values is not finite, or not in that dtype.
        """
        if self.is_quantised(name):
            columns = range(self._shapes[name][1]) if columns is None else columns
            found = self.read_quantised(name, rows, columns).plain(torch.float32)
        else:
            found = self._stored(name, rows, columns)
        converted = found.to(self.dtype)
        # One reduction over what is in the processor's cache. Finite values rarely have a sum that
        # overflows; only if it does are the values looked at one by one.
        if not bool(converted.sum().isfinite()) and not bool(converted.isfinite().all()):
            raise CheckpointError(f"{self._model_dir}: {_not_finite(name, found, self.dtype)}")
        return converted

    def is_quantised(self, name: str) -> bool:
        """Whether a tensor is stored quantised, or is to be quantised as it is read."""
        if self._quantisation is None:
            return False
        if self._quantisation.at_load:
            return name in self._matrices
        return self._format(name) == STORED_FORMATS[self._quantisation.format]

    def read_quantised(self, name: str, rows: range, columns: range, *, cut: int = 0) -> Quantised:
        """Rows and columns of a tensor that :meth:`is_quantised`, on the CPU, with scales for
        shards that begin and end at multiples of ``cut`` columns (0: at the ends).

        Rows are quantised whole, so that every plan gets the same numbers.

        Raises:
            CheckpointError: a scale is missing or misshaped, or a value is not finite.
        """
        assert self._quantisation is not None, "asked for before"
        if self._quantisation.at_load:
            stored = self._stored(name, rows)
            if not bool(stored.isfinite().all()):
                raise CheckpointError(f"{self._model_dir}: {_not_finite(name, stored, self.dtype)}")
            return quantise(stored, self._quantisation.format).columns(columns)
        values, grid = self._stored(name, rows, columns), self._grid(name)
        if values.dtype.is_floating_point and bool(values.isnan().any()):
            raise CheckpointError(
                f"{self._model_dir}: {_not_finite(name, values.float(), self.dtype)}"
            )
        edges = math.gcd(columns.start, cut)
        group = self._quantisation.columns_per_scale(edges) or len(columns)
        return Quantised(
            values=values,
            scales=grid.of(rows, columns, group),
            group=group,
            rounds_rows=self._quantisation.format.rounds_rows,
        )

    def _stored(self, name: str, rows: range, columns: range | None = None) -> Tensor:
        part = self._slice(name)
        if columns is None:
            found = part[rows.start : rows.stop]
        else:
            found = part[rows.start : rows.stop, columns.start : columns.stop]
        assert isinstance(found, Tensor), "safetensors was opened for torch"
        return found

    def _grid(self, name: str) -> ScaleGrid:
        assert self._quantisation is not None, "asked for before"
        scale = self._find_scale(name)
        assert scale is not None, "checked when it was opened"
        try:
            return scale_grid(
                self._slice(scale)[...], scale, self._shapes[name], self._quantisation
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self._model_dir}: {error}") from error

    def _find_scale(self, name: str) -> str | None:
        return next((found for found in scale_names(name) if found in self._places), None)

    def _format(self, name: str) -> str:
        return str(self._slice(name).get_dtype())

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
            name if name.startswith(f"{names.head}.") else MODEL_PREFIX + name: place
            for name, place in self._places.items()
        }

    def _has_one_vocabulary(self, model: ModelConfig) -> bool:
        """Whether a tied model's file agrees: it holds one of embedding and head, or both equal.

        Where they differ the file goes before the config, as in transformers.
        """
        embedding, head = ends(model)
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
        if self.is_quantised(head):
            return False
        for start in range(0, model.vocab_size, ROWS_COMPARED):
            stop = min(start + ROWS_COMPARED, model.vocab_size)
            a, b = (self._slice(name)[start:stop] for name in (embedding, head))
            if not torch.equal(a, b):
                return False
        return True

    def _check(self, model: ModelConfig) -> None:
        known = set(self._shapes)
        ignored: tuple[str, ...] = IGNORED_SUFFIXES
        for name, shape in self._shapes.items():
            self._check_tensor(name, shape)
        if self._quantisation is not None and not self._quantisation.at_load:
            known |= {self._check_scale(name) for name in self._shapes if self.is_quantised(name)}
            ignored += OTHER_SCALES
        for name in self._places.keys() - known:
            if not name.endswith(ignored):
                raise CheckpointError(
                    f"{self._model_dir}: tensor {name} is not part of a {model.model_type} model "
                    "with this config.json; leaving it out would change what the model answers"
                )

    def _check_scale(self, name: str) -> str:
        """The name of the scales of a quantised tensor, which are read once."""
        found = self._find_scale(name)
        if found is None:
            raise CheckpointError(
                f"{self._model_dir}: tensor {scale_names(name)[0]} is missing, and {name} is "
                f"quantised ({self._format(name)})"
            )
        if (stored := self._format(found)) not in PLAIN_FORMATS:
            raise CheckpointError(f"{self._model_dir}: tensor {found} is in {stored}, not a float")
        self._grid(name)
        return found

    def _formats(self, name: str) -> frozenset[str]:
        """What a tensor may be stored as."""
        said = self._quantisation
        if said is None or said.at_load or name not in self._matrices | {self._head}:
            return PLAIN_FORMATS
        return PLAIN_FORMATS | {STORED_FORMATS[said.format]}

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._places:
            raise CheckpointError(f"{self._model_dir}: tensor {name} is missing")
        found = self._slice(name)
        if (stored := str(found.get_dtype())) not in self._formats(name):
            said = self._quantisation
            told = "names no quantised weights" if said is None else f"tells of {said.format} ones"
            raise CheckpointError(
                f"{self._model_dir}: tensor {name} is quantised ({stored}), and config.json {told}"
            )
        if (dims := tuple(found.get_shape())) != shape:
            raise CheckpointError(
                f"{self._model_dir}: tensor {name} has shape {list(dims)}, "
                f"config.json asks for {list(shape)}"
            )


def _not_finite(name: str, values: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with a tensor that has a value which is not finite in ``dtype``."""
    if bool(values.isfinite().all()):
        word = str(dtype).removeprefix("torch.")
        return f"tensor {name} has values that {word} cannot hold; serve it in a wider dtype"
    return f"tensor {name} has values that are not finite numbers; the file is damaged"


def _open_files(model_dir: Path) -> dict[str, Any]:
    """Opened safetensors files by name.

    A model saved in one file over one of several leaves the index of those: ``transformers``
    removes them, but not it. Saved the other way round, the one file is left.
    """
    index = model_dir / INDEX_FILE
    names = _indexed_files(index) if index.exists() else [SINGLE_FILE]
    if SINGLE_FILE not in names and (model_dir / SINGLE_FILE).exists():
        if any((model_dir / name).exists() for name in names):
            raise CheckpointError(
                f"{model_dir}: {SINGLE_FILE} lies beside the files that {INDEX_FILE} names, and "
                "either may be the model; remove what is not"
            )
        names = [SINGLE_FILE]
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
    """Whether ``name`` is a plain file name, which cannot lead out of its folder."""
    is_plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
    return is_plain and len(os.fsencode(str(name))) <= MOST_NAME_BYTES


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
