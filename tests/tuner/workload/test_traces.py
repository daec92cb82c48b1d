"""Trace readers: the public traces as published, and rows that cannot be read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.spec.errors import TraceError
from tuner.workload.rows import Rows, Wanted
from tuner.workload.traces import read_trace, spread_quantised
from tuner.workload.workload import gap_cv, peak_to_mean

TRACES = Path(__file__).parents[3].parent / "shared" / "traces"
AZURE = TRACES / "azure2023" / "AzureLLMInferenceTrace_code.csv"
MOONCAKE = TRACES / "mooncake" / "synthetic_trace.jsonl"
MOONCAKE_SLICE = TRACES / "mooncake" / "mooncake_arxiv_slice_1000.jsonl"
needs_traces = pytest.mark.skipif(
    not TRACES.exists(), reason="the public traces are not beside this checkout"
)
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read_azure(path: Path) -> Rows:
    return read_trace("azure", path, Wanted(seed=0))


def read_own(path: Path) -> Rows:
    return read_trace("csv", path, Wanted(seed=0))


def read_mooncake(path: Path, *, seed: int) -> Rows:
    return read_trace("mooncake", path, Wanted(seed=seed))


def lengths(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    return [round(float(v)) for v in (values.mean(), *np.percentile(values, (50, 95)))]


@needs_traces
def test_the_azure_code_trace_has_its_published_statistics() -> None:
    rows = read_azure(AZURE)
    assert len(rows) == 8819
    assert round(rows.span_s) == 3436
    assert len(rows) / rows.span_s == pytest.approx(2.57, abs=0.005)
    assert lengths(rows.input_tokens) == [2048, 1469, 7303]
    assert lengths(rows.output_tokens) == [28, 13, 90]
    assert gap_cv(rows.arrival_s) == pytest.approx(13, abs=0.5)
    assert peak_to_mean(rows.arrival_s) == pytest.approx(4.2, abs=0.05)
    minutes = np.bincount((rows.arrival_s // 60).astype(int))
    assert (len(minutes), int((minutes == 0).sum())) == (58, 12)
    assert int((rows.arrival_s < 900).sum()) == 2598
    assert rows.sha256 == hashlib.sha256(AZURE.read_bytes()).hexdigest()


@needs_traces
def test_the_mooncake_trace_has_its_published_statistics() -> None:
    rows = read_mooncake(MOONCAKE, seed=0)
    assert len(rows) == 3993
    assert round(rows.span_s) == 1022
    assert len(rows) / rows.span_s == pytest.approx(3.91, abs=0.005)
    assert lengths(rows.input_tokens) == [15325, 11587, 48905]
    assert lengths(rows.output_tokens) == [149, 69, 519]
    assert gap_cv(rows.arrival_s) == pytest.approx(1.0, abs=0.05)
    assert rows.spread_s == 0, "its stamps are not quantised"
    seen: set[int] = set()
    hits = total = 0
    for ids in rows.hash_ids:
        total += len(ids)
        hits += sum(i in seen for i in ids)
        seen.update(ids)
    assert hits / total == pytest.approx(0.64, abs=0.02)


@needs_traces
def test_the_quantised_mooncake_slice_is_spread_inside_its_bins_by_seed() -> None:
    rows, again, other = (read_mooncake(MOONCAKE_SLICE, seed=s) for s in (1, 1, 2))
    assert len(rows) == 1000
    assert rows.spread_s == pytest.approx(3.05, abs=0.05)
    assert rows.span_s == pytest.approx(177 + 3, abs=1)
    assert lengths(rows.input_tokens) == [9792, 6558, 27307]
    assert np.array_equal(rows.arrival_s, again.arrival_s)
    assert not np.array_equal(rows.arrival_s, other.arrival_s)
    # Spread evenly the gaps look like a Poisson process; quantised their CV is 4.
    assert gap_cv(rows.arrival_s) == pytest.approx(1.0, abs=0.1)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_seven_fractional_digits_keep_their_microseconds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        AZURE_HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    )
    rows = read_azure(path)
    assert rows.arrival_s.tolist() == pytest.approx([0, 4.314579], abs=1e-9)
    assert rows.input_tokens.tolist() == [374, 396]
    assert rows.output_tokens.tolist() == [44, 109]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:15:47.0,x,44", "line 3: ContextTokens 'x'"),
        ("2023-11-16 18:15:47.0,0,7", "line 3: ContextTokens '0'"),
        ("2023-11-16 18:15:47.0,12,-3", "line 3: GeneratedTokens '-3'"),
        ("2023-11-16 18:15:47.0,12", "line 3: GeneratedTokens ''"),
        ("yesterday,12,3", "line 3: TIMESTAMP 'yesterday'"),
        ("2023-13-16 18:15:47.0,12,3", "line 3: TIMESTAMP"),
        ("12,12,3", "line 3: TIMESTAMP '12'"),
        ("", "line 3: TIMESTAMP ''"),
        ("2023-11-16 18:15:47.0,12,3,4", "line 3"),
    ],
)
def test_an_unreadable_azure_row_names_the_file_and_its_line(
    tmp_path: Path, row: str, message: str
) -> None:
    text = f"{AZURE_HEADER}2023-11-16 18:15:46.6,374,44\n{row}\n2023-11-16 18:15:48.0,1,1\n"
    path = write(tmp_path / "trace.csv", text)
    with pytest.raises(TraceError, match=r"trace\.csv") as caught:
        read_azure(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not readable as JSON"),
        ("[1]", "line 2: '[1]' is not an object"),
        ('{"timestamp": 1, "output_length": 5}', "line 2: 'input_length' is missing"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 5}', "line 2: timestamp -1"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 5}', "line 2: input_length 0"),
        ('{"timestamp": 1, "input_length": true, "output_length": 5}', "line 2: input_length True"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [""]}', "hash_ids"),
        ("", "line 2: not readable as JSON"),
    ],
)
def test_an_unreadable_mooncake_row_names_the_file_and_its_line(
    tmp_path: Path, line: str, message: str
) -> None:
    fine = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}'
    path = write(tmp_path / "trace.jsonl", f"{fine}\n{line}\n{fine}\n")
    with pytest.raises(TraceError, match=r"trace\.jsonl") as caught:
        read_mooncake(path, seed=0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,input_tokens\n0,1\n", "'output_tokens' is missing"),
        ("arrival_s,input_tokens,output_tokens,input_tokens\n0,1,1,9\n", "stands there twice"),
        ("arrival_s,input_tokens,output_tokens\n", "no rows"),
        ("arrival_s,input_tokens,output_tokens\n0,1,1\nnan,1,1\n", "line 3: arrival_s 'nan'"),
        ("arrival_s,input_tokens,output_tokens\n-1,1,1\n", "line 2: arrival_s '-1'"),
        ("", "is empty"),
    ],
)
def test_an_unreadable_own_trace_says_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(TraceError, match=r"own\.csv") as caught:
        read_own(write(tmp_path / "own.csv", text))
    assert message in str(caught.value)


def test_a_missing_file_and_an_empty_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_azure(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="is empty"):
        read_mooncake(write(tmp_path / "empty.jsonl", ""), seed=0)


def test_our_own_trace_reads_from_csv_and_jsonl_alike(tmp_path: Path) -> None:
    table = [(0.5, 10, 2, "a"), (0.25, 20, 3, None), (1.0, 30, 4, "a")]
    csv = "arrival_s,input_tokens,output_tokens,prefix_id\n" + "".join(
        f"{at},{n},{m},{prefix or ''}\n" for at, n, m, prefix in table
    )
    names = ("arrival_s", "input_tokens", "output_tokens", "prefix_id")
    jsonl = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in table)
    rows = read_own(write(tmp_path / "t.csv", csv))
    other = read_own(write(tmp_path / "t.jsonl", jsonl))
    # Sorted by time, the first one at 0.
    assert rows.arrival_s.tolist() == other.arrival_s.tolist() == [0, 0.25, 0.75]
    assert rows.input_tokens.tolist() == other.input_tokens.tolist() == [20, 10, 30]
    assert rows.prefix_ids == other.prefix_ids == (None, "a", "a")


tables = st.lists(
    st.tuples(
        st.floats(min_value=0, max_value=1e6),
        st.integers(min_value=1, max_value=10**6),
        st.integers(min_value=1, max_value=10**6),
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(tables)
def test_what_is_written_as_our_own_trace_reads_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[float, int, int]]
) -> None:
    text = "arrival_s,input_tokens,output_tokens\n"
    text += "".join(f"{at!r},{n},{m}\n" for at, n, m in table)
    rows = read_own(write(tmp_path_factory.mktemp("t") / "t.csv", text))
    expected = sorted(table, key=lambda row: row[0])
    assert rows.arrival_s.tolist() == [at - expected[0][0] for at, _, _ in expected]
    assert rows.input_tokens.tolist() == [n for _, n, _ in expected]
    assert rows.output_tokens.tolist() == [m for _, _, m in expected]


@settings(deadline=None)
@given(
    st.lists(st.integers(min_value=2, max_value=9), min_size=2, max_size=20),
    st.integers(min_value=0, max_value=99),
)
def test_spreading_keeps_order_and_stays_inside_each_bin(counts: list[int], seed: int) -> None:
    stamps = np.repeat(np.arange(len(counts)) * 3.0, counts)
    order = np.arange(stamps.size)
    rows = Rows(arrival_s=stamps, input_tokens=order + 1, output_tokens=order + 1)
    spread = spread_quantised(rows, np.random.default_rng(seed))
    if 1 - len(counts) / stamps.size <= 0.5:
        assert spread is rows
        return
    assert spread.spread_s == 3.0
    assert np.all(np.diff(spread.arrival_s) >= 0)
    # Times start at 0 again, so a bin may shift by less than its width.
    assert np.all(np.abs(spread.arrival_s - stamps) < 3.0)
