"""How a checkpoint's layers are quantised, as its ``config.json`` states it; no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.spec.errors import CheckpointError
from engine.spec.reader import ConfigReader

KEY = "quantization_config"
SCALE_BYTES = 4
# Products of fp8 are computed over no fewer inputs at once.
LEAST_COLUMNS = 32
MOST_COLUMNS = 2**16
# Notes of the tools, and how activations are rounded: here each row has a scale of its own, which
# is as fine as any of theirs.
_FP8_KEYS = frozenset(
    {
        "quant_method", "activation_scheme", "weight_block_size", "fmt", "modules_to_not_convert",
        "ignored_layers", "scale_fmt", "dequantize",
    }
)  # fmt: skip
_COMPRESSED_KEYS = frozenset(
    {
        "quant_method", "config_groups", "format", "ignore", "kv_cache_scheme",
        "quantization_status", "global_compression_ratio", "version", "sparsity_config",
        "transform_config",
    }
)  # fmt: skip
_COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
READABLE = (
    "float32, bfloat16 and float16, and in fp8 or int8 by quant_method fp8 or compressed-tensors, "
    "can be read"
)


class WeightFormat(StrEnum):
    """Formats of quantised weights, one byte each: fp8 is e4m3, all are symmetric about zero.

    ``W8A8`` is int8 whose products round what they are multiplied with too, each row (a token's) by
    a scale of its own: the scheme of that name of llm-compressor, vLLM's int8.
    """

    FP8 = "fp8"
    INT8 = "int8"
    W8A8 = "w8a8"

    @property
    def is_int8(self) -> bool:
        """Whether weights are int8."""
        return self is not WeightFormat.FP8

    @property
    def rounds_rows(self) -> bool:
        """Whether a CPU rounds rows, too."""
        return self is WeightFormat.W8A8


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Weights of the layers in ``format``, with scales beside them.

    ``block``: rows and columns that share a scale; None where whole rows do (or all of a matrix).
    ``plain``: modules that are left as they were, by name or ``re:`` and a pattern. ``at_load``:
    the checkpoint is plain, and is quantised row by row as it is read. ``is_kept``: ranks hold and
    multiply the quantised weights, as devices that can are told to; else they make them plain as
    they load. ``has_head``: the head is quantised too, in a copy of its own where it is tied to the
    embedding.
    """

    format: WeightFormat
    block: tuple[int, int] | None = None
    plain: tuple[str, ...] = ()
    at_load: bool = False
    is_kept: bool = False
    has_head: bool = False

    def covers(self, modules: Iterable[str]) -> bool:
        """Whether none of ``modules`` is left plain."""
        return not any(_matches(pattern, name) for name in modules for pattern in self.plain)

    def columns_per_scale(self, width: int) -> int | None:
        """Columns that share a scale in a matrix which is cut at multiples of ``width`` columns (0:
        nowhere); None where all do.
        """
        return None if self.block is None else math.gcd(self.block[1], width)

    def matrix_bytes(self, rows: int, columns: int, *, cut: int) -> int:
        """Bytes of a matrix and its scales (one per row and piece of columns)."""
        group = self.columns_per_scale(cut)
        num_scales = rows * (1 if group is None else -(-columns // group))
        return rows * columns + SCALE_BYTES * num_scales


def read_quantisation(config: ConfigReader) -> Quantisation | None:
    """What ``quantization_config`` says; None where there is none.

    Raises:
        CheckpointError: another method, or a setting that is not known, by its name.
    """
    found = config.raw.get(KEY)
    if not found:
        return None
    entry = config.object(KEY) if isinstance(found, dict) else None
    match None if entry is None else entry.find("quant_method"):
        case "fp8":
            assert entry is not None, "it has a key"
            return _read_fp8(entry)
        case "compressed-tensors":
            assert entry is not None, "it has a key"
            return _read_compressed(entry)
        case _:
            raise CheckpointError(
                f"{config.where}: the weights are quantised ({method_of(found)}); only weights in "
                f"{READABLE}"
            )


def method_of(entry: Any) -> str:
    """How ``entry`` calls its method."""
    if not isinstance(entry, dict):
        return str(entry)[:60]
    found = entry.get("quant_method") or entry.get("format")
    if found is None:
        bits = [f"{name} {entry[name]}" for name in ("bits", "w_bit") if name in entry]
        found = bits[0] if bits else "method not named"
    return str(found)[:60]


def _read_fp8(entry: ConfigReader) -> Quantisation:
    _check_keys(entry, _FP8_KEYS)
    if (fmt := entry.word("fmt", "e4m3")) != "e4m3":
        raise CheckpointError(f"{entry.where}: fmt {fmt!r} is not supported (e4m3)")
    scheme = entry.word("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise CheckpointError(
            f"{entry.where}: activation_scheme {scheme!r} is not supported (dynamic, static)"
        )
    plain = (*_names(entry, "modules_to_not_convert"), *_names(entry, "ignored_layers"))
    block = entry.find("weight_block_size")
    return Quantisation(
        format=WeightFormat.FP8, block=_block(block, entry.where) if block else None, plain=plain
    )


def _read_compressed(entry: ConfigReader) -> Quantisation:
    _check_keys(entry, _COMPRESSED_KEYS)
    if (found := entry.word("format", "float-quantized")) not in _COMPRESSED_FORMATS:
        known = ", ".join(_COMPRESSED_FORMATS)
        raise CheckpointError(
            f"{entry.where}: format {found!r} is not supported; supported are {known}"
        )
    sparsity = entry.object("sparsity_config")
    if sparsity is not None and (how := sparsity.word("format", "dense")) != "dense":
        raise CheckpointError(f"{sparsity.where}: format {how!r} is not supported (dense)")
    if entry.find("transform_config"):
        raise CheckpointError(f"{entry.where}: transform_config is not supported")
    groups = entry.object("config_groups")
    kinds = set() if groups is None else {_read_group(groups, name) for name in groups.raw}
    if (WeightFormat.INT8, None) in kinds:
        # Rows are rounded where all groups ask for it, else nowhere.
        kinds.discard((WeightFormat.W8A8, None))
    if len(kinds) != 1:
        raise CheckpointError(
            f"{entry.where}: config_groups name {len(kinds)} ways to quantise weights; one is read"
        )
    form, block = kinds.pop()
    return Quantisation(format=form, block=block, plain=_names(entry, "ignore"))


def _read_group(groups: ConfigReader, name: str) -> tuple[WeightFormat, tuple[int, int] | None]:
    group = groups.object(name)
    weights = None if group is None else group.object("weights")
    if weights is None:
        raise CheckpointError(f"{groups.where}: {name} says nothing of weights")
    bits, kind = weights.integer("num_bits", 8), weights.word("type", "int")
    if bits != 8 or kind not in ("float", "int") or not weights.flag("symmetric", True):
        about = "" if weights.flag("symmetric", True) else ", with zero points"
        raise CheckpointError(
            f"{weights.where}: {bits}-bit {kind}{about} is not supported (8 bits, symmetric)"
        )
    block = None
    match weights.word("strategy", "tensor"):
        case "tensor" | "channel":
            pass
        case "block":
            found = weights.find("block_structure")
            if isinstance(found, str):
                found = [int(part) if part.isdecimal() else part for part in found.split("x")]
            block = _block(found, weights.where)
        case other:
            raise CheckpointError(
                f"{weights.where}: strategy {other!r} is not supported (tensor, channel, block)"
            )
    if kind == "float":
        return WeightFormat.FP8, block
    assert group is not None, "it has weights"
    is_rounded = block is None and _rounds_tokens(group)
    return WeightFormat.W8A8 if is_rounded else WeightFormat.INT8, block


def _rounds_tokens(group: ConfigReader) -> bool:
    """Whether activations are declared as int8 with a scale for each token, found as they come."""
    told = group.object("input_activations")
    return (
        told is not None
        and (told.integer("num_bits", 8), told.word("type", "int")) == (8, "int")
        and told.find("dynamic") is True
        and told.find("strategy") == "token"
        and told.find("symmetric") is not False
    )


def _block(found: Any, where: str) -> tuple[int, int]:
    is_pair = isinstance(found, list) and len(found) == 2
    if not is_pair or not all(type(size) is int and 1 <= size <= MOST_COLUMNS for size in found):
        raise CheckpointError(f"{where}: a block of {found!r} is not rows and columns of weights")
    rows, columns = found
    if columns < LEAST_COLUMNS or columns & (columns - 1):
        raise CheckpointError(
            f"{where}: blocks of {columns} columns are not supported (a power of two from "
            f"{LEAST_COLUMNS} on)"
        )
    return rows, columns


def _names(entry: ConfigReader, key: str) -> tuple[str, ...]:
    found = entry.find(key)
    names = [] if found is None else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{entry.where}: {key} is not a list of modules")
    for name in names:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            raise CheckpointError(f"{entry.where}: {key}: {name[:60]!r} ({error})") from error
    return tuple(names)


def _check_keys(entry: ConfigReader, known: frozenset[str]) -> None:
    for key, value in entry.raw.items():
        is_asking = value is not None and value is not False and value not in ({}, [], "")
        if is_asking and key not in known:
            raise CheckpointError(
                f"{entry.where}: key {key!r} is not known; leaving it out could change what the "
                "model answers"
            )


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return f".{name}.".find(f".{pattern}.") >= 0


def quantisation_from_json(document: Mapping[str, Any]) -> Quantisation:
    """Read what ``dataclasses.asdict`` made of one."""
    block = document.get("block")
    return Quantisation(
        **{
            **document,
            "format": WeightFormat(document["format"]),
            "block": None if block is None else (int(block[0]), int(block[1])),
            "plain": tuple(document.get("plain") or ()),
        }
    )
