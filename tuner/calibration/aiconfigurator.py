"""Measurements of an installed ``aiconfigurator``, laid out as the files that this package reads.

Its database is one Parquet file per system, framework version and operator, which pyarrow (a
dependency of its own) reads. Rows of dense models are written as ``operators/*.csv.gz``; nothing of
it is kept in this project.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuner.calibration.readers import SiliconError
from tuner.calibration.systems import SYSTEMS

# Newer releases keep the data in a package of its own.
PACKAGES = ("aiconfigurator_core", "aiconfigurator")
WAY_OUT = "install it with `pip install aiconfigurator`, or give --source files and --data FOLDER"
BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One operator's file: ``file`` in the database, ``name`` here, ``columns`` taken, and what
    rows must hold (where the column exists)."""

    file: str
    name: str
    columns: tuple[str, ...]
    only: dict[str, Any]
    framework: str = "vllm"


_HEADS = ("num_heads", "num_key_value_heads")
_ATTENTION = {
    "head_dim": 128,
    "attn_dtype": BFLOAT16,
    "kv_cache_dtype": BFLOAT16,
    "window_size": 0,
}
GEMM = tuple(
    Table(
        file="gemm_perf", name=f"gemm_{name}", columns=("m", "n", "k"), only={"gemm_dtype": dtype}
    )
    for name, dtype in (("bf16", BFLOAT16), ("fp8", "fp8"))
)
OTHERS = (
    Table(
        file="context_attention_perf",
        name="context_attention_bf16_hd128",
        columns=("batch_size", "isl", *_HEADS),
        only={**_ATTENTION, "step": 0},
    ),
    Table(
        file="generation_attention_perf",
        name="generation_attention_bf16_hd128",
        columns=("batch_size", "step", *_HEADS),
        only={**_ATTENTION, "isl": 1},
    ),
    Table(
        file="custom_allreduce_perf",
        name="custom_allreduce_bf16",
        columns=("kernel_source", "num_gpus", "message_size"),
        only={"allreduce_dtype": BFLOAT16},
    ),
    Table(
        file="nccl_perf",
        name="nccl_half",
        columns=("op_name", "num_gpus", "message_size"),
        only={"nccl_dtype": "half"},
        framework="nccl",
    ),
)


def write_operators(folder: Path) -> list[Path]:
    """Write ``operators/SYSTEM_NAME.csv.gz`` of every known system into ``folder``: of each
    operator the newest version that the package holds.

    Returns:
        The database files read.

    Raises:
        SiliconError: the package or pyarrow is not installed, or an operator is missing.
    """
    database = _database()
    target = folder / "operators"
    target.mkdir(parents=True, exist_ok=True)
    used = []
    for system in SYSTEMS:
        gemm = [t for t in GEMM if t.name.removeprefix("gemm_") in system.precisions]
        for table in (*gemm, *OTHERS):
            source = _newest(database / system.operators, table)
            _write(target / f"{system.operators}_{table.name}.csv.gz", table, _rows(source))
            used.append(source)
    return used


def _database() -> Path:
    for package in PACKAGES:
        spec = find_spec(package)
        # Found, not imported: the package loads a compiled extension.
        for place in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(place) / "systems" / "data"
            if folder.is_dir():
                return folder
    raise SiliconError(f"aiconfigurator is not installed: {WAY_OUT}")


def _newest(system: Path, table: Table) -> Path:
    """The file of the highest version of the table's framework."""
    found = [
        path
        for path in system.rglob(f"{table.file}.parquet")
        if path.parent.parent.name == table.framework
    ]
    if not found:
        raise SiliconError(
            f"{system}: no {table.file}.parquet of {table.framework}; another release of "
            f"aiconfigurator may have it: {WAY_OUT}"
        )
    return max(found, key=lambda path: _version(path.parent.name))


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise SiliconError(f"pyarrow is not installed: {WAY_OUT}") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise SiliconError(f"{path}: cannot be read as Parquet ({error})") from error
    return rows


def _write(path: Path, table: Table, rows: list[dict[str, Any]]) -> None:
    # No time in the header: the same rows give the same file.
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
        lines = csv.writer(_Encoded(packed))
        lines.writerow([*table.columns, "latency_ms"])
        lines.writerows(_chosen(table, rows))


def _chosen(table: Table, rows: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for row in rows:
        if all(row.get(name, value) == value for name, value in table.only.items()):
            yield [*(row[name] for name in table.columns), row["latency"]]


class _Encoded:
    """What the csv module writes, as bytes."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text.encode())
