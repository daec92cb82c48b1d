from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tuner.calibration.readers import SiliconError, read_columns, read_custom_all_reduce


def write(folder: Path, text: str) -> Path:
    path = folder / "data.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_times_become_seconds_and_repeats_their_median(tmp_path: Path) -> None:
    path = write(tmp_path, "m,n,latency_ms\n8,2,3.0\n4,2,1.0\n4,2,9.0\n4,2,2.0\n")
    columns = read_columns(path, names=("m", "n"), seconds="latency_ms")
    assert columns.values.tolist() == [[4, 2], [8, 2]]
    assert columns.seconds == pytest.approx([0.002, 0.003])
    assert columns.source.rows == 4
    assert len(columns.source.sha256) == 64


def test_a_value_that_is_no_number_is_named_by_file_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, "m,latency_ms\n1,2.0\nmany,2.0\n")
    with pytest.raises(SiliconError, match=r"data\.csv\.gz:3: column 'm': 'many' is no number"):
        read_columns(path, names=("m",), seconds="latency_ms")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,latency_ms\n1\n", r":2: column 'latency_ms': None is no number"),
        ("m,latency_ms\n1,-2\n", r":2: latency_ms=-2.0: a time is not negative"),
        ("m,time\n1,2\n", r":1: column 'latency_ms' is missing"),
        ("m,latency_ms\n", r"holds no row"),
    ],
)
def test_a_row_at_fault_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SiliconError, match=message):
        read_columns(write(tmp_path, text), names=("m",), seconds="latency_ms")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiliconError, match=r"none\.csv\.gz: no such file"):
        read_columns(tmp_path / "none.csv.gz", names=("m",), seconds="s")
    plain = tmp_path / "plain.csv.gz"
    plain.write_text("m,s\n1,2\n")
    with pytest.raises(SiliconError, match="gzipped"):
        read_columns(plain, names=("m",), seconds="s")


def test_launches_of_one_file_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "operators"
    folder.mkdir()
    (folder / "x_custom_allreduce_bf16.csv.gz").write_bytes(
        gzip.compress(
            b"kernel_source,num_gpus,message_size,latency_ms\n"
            b"vLLM_custom_eager,2,128,0.02\nvLLM_custom_graph,2,128,0.004\n"
        )
    )
    graph = read_custom_all_reduce(tmp_path, "x", "graph")
    assert np.allclose(graph.seconds, [4e-6])
