"""Published measurements as columns: ``silicon/operators`` (AIConfigurator) and ``silicon/vidur``.

Files are gzipped CSV, times in milliseconds. A row that cannot be read is an error with its file,
line and column. Equal shapes measured more than once are averaged by their median.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.spec.errors import TunerError

FloatArray = npt.NDArray[np.float64]
MS = 1e-3


class SiliconError(TunerError):
    """A measurement file that cannot be read; the message holds file, line and column."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file as it was read."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Measured seconds f8[rows] of the shapes in ``names`` f8[rows, names], and their source."""

    names: tuple[str, ...]
    values: FloatArray
    seconds: FloatArray
    source: Source

    def __len__(self) -> int:
        return len(self.seconds)

    def column(self, name: str) -> FloatArray:
        return np.asarray(self.values[:, self.names.index(name)])

    def where(self, mask: npt.NDArray[np.bool_]) -> Columns:
        """The rows of ``mask`` only."""
        return Columns(
            names=self.names,
            values=self.values[mask],
            seconds=self.seconds[mask],
            source=self.source,
        )


def read_gemm(data: Path, system: str, precision: str) -> Columns:
    """``[m, k] @ [k, n]``; ``precision`` is bf16 or fp8."""
    path = data / "operators" / f"{system}_gemm_{precision}.csv.gz"
    return read_columns(path, names=("m", "n", "k"), seconds="latency_ms")


def read_prefill(data: Path, system: str) -> Columns:
    """Causal attention over whole prompts without a prefix, head size 128."""
    path = data / "operators" / f"{system}_context_attention_bf16_hd128.csv.gz"
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads")
    return read_columns(path, names=names, seconds="latency_ms")


def read_decode(data: Path, system: str) -> Columns:
    """One query token per sequence over ``step`` cached ones, head size 128."""
    path = data / "operators" / f"{system}_generation_attention_bf16_hd128.csv.gz"
    names = ("batch_size", "step", "num_heads", "num_key_value_heads")
    return read_columns(path, names=names, seconds="latency_ms")


def read_custom_all_reduce(data: Path, system: str, launch: str) -> Columns:
    """vLLM's all-reduce; ``launch`` is eager or graph, sizes in elements of 2 bytes."""
    path = data / "operators" / f"{system}_custom_allreduce_bf16.csv.gz"
    only = {"kernel_source": f"vLLM_custom_{launch}"}
    names = ("num_gpus", "message_size")
    return read_columns(path, names=names, seconds="latency_ms", only=only)


def read_nccl(data: Path, system: str, operation: str) -> Columns:
    """One NCCL collective, sizes in elements of 2 bytes as nccl-tests counts them."""
    path = data / "operators" / f"{system}_nccl_half.csv.gz"
    names = ("num_gpus", "message_size")
    return read_columns(path, names=names, seconds="latency_ms", only={"op_name": operation})


def read_small(data: Path, name: str, operation: str) -> Columns:
    """A small operation of ``vidur/NAME_mlp``: median time against tokens and tensor ranks."""
    path = data / "vidur" / f"{name}_mlp.csv.gz"
    names = ("num_tokens", "num_tensor_parallel_workers", "n_embd", "n_expanded_embd", "n_head",
             "n_kv_head")  # fmt: skip
    return read_columns(path, names=names, seconds=f"time_stats.{operation}.median")


def read_chunked_prefill(data: Path, name: str) -> Columns:
    """Prefill chunks over an existing prefix of ``kv_cache_size`` tokens."""
    path = data / "vidur" / f"{name}_attention.csv.gz"
    names = ("batch_size", "prefill_chunk_size", "kv_cache_size", "n_q_head", "n_kv_head",
             "num_tensor_parallel_workers")  # fmt: skip
    seconds = "time_stats.attn_prefill.median"
    return read_columns(path, names=names, seconds=seconds, only={"is_prefill": "True"})


def read_links(data: Path, name: str) -> Columns:
    """``vidur/NAME`` (send_recv or all_reduce): ``size`` in bytes, by workers per node."""
    path = data / "vidur" / f"{name}.csv.gz"
    operation = "send_recv" if name.endswith("send_recv") else "all_reduce"
    names = ("num_workers", "size", "devices_per_node")
    return read_columns(path, names=names, seconds=f"time_stats.{operation}.median")


def read_columns(
    path: Path, *, names: tuple[str, ...], seconds: str, only: dict[str, str] | None = None
) -> Columns:
    """Columns of one file, times turned from milliseconds to seconds.

    Raises:
        SiliconError: no such file, a missing column, a value that is no number, or a time that
            is not above zero, with file, line and column.
    """
    groups: dict[tuple[float, ...], list[float]] = defaultdict(list)
    wanted = only or {}
    for line, row in _rows(path, (*names, seconds, *wanted)):
        if any(row[name] != value for name, value in wanted.items()):
            continue
        shape = tuple(_number(row, name, path, line) for name in names)
        taken = _number(row, seconds, path, line)
        if taken < 0:
            raise SiliconError(f"{path}:{line}: {seconds}={taken}: a time is not negative")
        # A timer of whole microseconds may report 0 for the shortest calls.
        if taken > 0:
            groups[shape].append(taken * MS)
    if not groups:
        raise SiliconError(f"{path}: holds no row with {wanted or 'a time'}")
    shapes = sorted(groups)
    return Columns(
        names=names,
        values=np.array(shapes, dtype=np.float64),
        seconds=np.array([np.median(groups[shape]) for shape in shapes], dtype=np.float64),
        source=Source(
            file=f"{path.parent.name}/{path.name}",
            rows=sum(map(len, groups.values())),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        ),
    )


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with gzip.open(path, "rt", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise SiliconError(f"{path}:1: column {missing[0]!r} is missing")
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError as error:
        raise SiliconError(f"{path}: no such file") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise SiliconError(f"{path}: cannot be read as gzipped CSV ({error})") from error


def _number(row: dict[str, str], name: str, path: Path, line: int) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError) as error:
        raise SiliconError(f"{path}:{line}: column {name!r}: {row[name]!r} is no number") from error
