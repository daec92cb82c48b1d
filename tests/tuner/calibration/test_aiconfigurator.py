"""An invented database in the package's layout, read by a stand-in for pyarrow."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tuner.calibration import aiconfigurator
from tuner.calibration.aiconfigurator import write_operators
from tuner.calibration.fit import main
from tuner.calibration.readers import SiliconError, read_custom_all_reduce, read_gemm, read_prefill
from tuner.calibration.systems import SYSTEMS

ATTENTION = {
    "batch_size": 2,
    "isl": 1,
    "step": 0,
    "num_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "latency": 0.5,
}
PRODUCT = {"m": 16, "n": 32, "k": 64, "gemm_dtype": "bfloat16", "latency": 1.0}
SENT = {"num_gpus": 2, "message_size": 128, "latency": 0.01}
ROWS: dict[str, list[dict[str, Any]]] = {
    "gemm/vllm/{}/gemm_perf": [PRODUCT, {**PRODUCT, "gemm_dtype": "fp8", "latency": 0.6}],
    "attention/vllm/{}/context_attention_perf": [
        ATTENTION,
        {**ATTENTION, "head_dim": 64},
        {**ATTENTION, "batch_size": 4, "window_size": 128},
        {**ATTENTION, "batch_size": 8, "kv_cache_dtype": "fp8"},
    ],
    "attention/vllm/{}/generation_attention_perf": [{**ATTENTION, "step": 100}],
    "comm/vllm/{}/custom_allreduce_perf": [
        {**SENT, "kernel_source": "vLLM_custom_graph", "allreduce_dtype": "bfloat16"}
    ],
    "comm/nccl/{}/nccl_perf": [{**SENT, "op_name": "all_gather", "nccl_dtype": "half"}],
}


class Read:
    """What pyarrow gives of a file; ours hold JSON."""

    def __init__(self, path: Path) -> None:
        self._text = path.read_text()

    def to_pylist(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self._text)
        return rows


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable ``aiconfigurator_core`` with two versions of each operator."""
    root = tmp_path / "site" / "aiconfigurator_core"
    for system in SYSTEMS:
        for name, rows in ROWS.items():
            for version, slower in (("0.9.0", 100.0), ("0.24.0", 1.0)):
                path = root / "systems/data" / system.operators / f"{name.format(version)}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(
                    json.dumps([{**row, "latency": row["latency"] * slower} for row in rows])
                )
    (root / "__init__.py").write_text("raise ImportError('needs a compiled extension')")
    monkeypatch.syspath_prepend(str(root.parent))
    parquet = ModuleType("pyarrow.parquet")
    vars(parquet)["read_table"] = Read
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    return root


def test_the_newest_version_is_laid_out_as_the_files_we_read(package: Path, tmp_path: Path) -> None:
    used = write_operators(tmp_path)
    assert all("0.24.0" in str(path) for path in used)
    assert read_gemm(tmp_path, "h100_sxm", "bf16").seconds == pytest.approx([1e-3])
    assert read_gemm(tmp_path, "h100_sxm", "fp8").seconds == pytest.approx([6e-4])
    graph = read_custom_all_reduce(tmp_path, "a100_sxm", "graph")
    assert graph.values.tolist() == [[2, 128]]


def test_other_head_sizes_windows_and_caches_are_left_out(package: Path, tmp_path: Path) -> None:
    write_operators(tmp_path)
    assert read_prefill(tmp_path, "h200_sxm").values.tolist() == [[2, 1, 8, 1]]


def test_the_same_database_gives_the_same_files(package: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        write_operators(folder)
    names = sorted(path.name for path in (first / "operators").iterdir())
    assert names
    for name in names:
        one, other = ((folder / "operators" / name).read_bytes() for folder in (first, second))
        assert one == other


def test_a_missing_operator_is_named(package: Path, tmp_path: Path) -> None:
    for path in package.rglob("nccl_perf.parquet"):
        path.unlink()
    with pytest.raises(SiliconError, match=r"no nccl_perf\.parquet of nccl"):
        write_operators(tmp_path)


def test_without_the_package_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aiconfigurator, "PACKAGES", ("no_such_package_here",))
    assert importlib.util.find_spec("no_such_package_here") is None
    command = ["--data", str(tmp_path), "--out", str(tmp_path), "--source", "aiconfigurator"]
    assert main(command) == 2
    assert "pip install aiconfigurator" in capsys.readouterr().err
