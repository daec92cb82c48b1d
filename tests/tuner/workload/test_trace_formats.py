"""Every trace format passes the one suite; what is special to a format; recognising a format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.trace_reader import TraceReaderContract
from tests.tuner.workload.test_traces import AZURE, MOONCAKE, TRACES, needs_traces
from tuner.spec.errors import TraceError, WorkloadError
from tuner.workload.parse import CutKind, Workload, check_workload, parse_workload
from tuner.workload.prompts import PromptMaker
from tuner.workload.trace_file import HEAD_BYTES
from tuner.workload.traces import READERS, TraceReader

AZURE_TEXT = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16T18:17:04.0319600Z,3180,8
2024-05-10 00:00:00+00:00,110,27
"""
BURST_TEXT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE_TEXT = """{"timestamp": 0, "input_length": 1500, "output_length": 4, "hash_ids": [7, 8, 9]}
{"timestamp": 27000, "input_length": 900, "output_length": 3, "session_id": "a"}
{"delay": 500, "input_length": 1000, "output_length": 5, "session_id": "a"}
"""
TABLE_TEXT = """window_start_s,rate_rps,active_clients,mean_input_tokens,mean_output_tokens
0,4.0,21,1174.0,146.5
50,2.0,21,844.0,139.6
100,0.0,0,,
"""
OWN_TEXT = """arrival_s,input_tokens,output_tokens,prefix_id
0.5,10,2,a
0.75,20,3,
1.0,30,4,a
"""
OWN_JSON_TEXT = """{"arrival_s": 0.5, "input_tokens": 10, "output_tokens": 2, "prefix_id": 7}
{"arrival_s": 0.75, "input_tokens": 20.0, "output_tokens": 3}
{"arrival_s": 1, "input_tokens": 30, "output_tokens": 4}
"""


def reader_of(word: str) -> TraceReader:
    return next(reader for reader in READERS if reader.word == word)


class TestAzureReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("azure")

    @pytest.fixture
    def example(self) -> bytes:
        return AZURE_TEXT.encode()


class TestBurstGptReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("burstgpt")

    @pytest.fixture
    def example(self) -> bytes:
        return BURST_TEXT.encode()


class TestMooncakeReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("mooncake")

    @pytest.fixture
    def example(self) -> bytes:
        return MOONCAKE_TEXT.encode()


class TestRateTableReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("servegen")

    @pytest.fixture
    def example(self) -> bytes:
        return TABLE_TEXT.encode()


class TestOwnReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("csv")

    @pytest.fixture
    def example(self) -> bytes:
        return OWN_TEXT.encode()


class TestOwnJsonReader(TraceReaderContract):
    @pytest.fixture
    def reader(self) -> TraceReader:
        return reader_of("csv")

    @pytest.fixture
    def example(self) -> bytes:
        return OWN_JSON_TEXT.encode()


def test_every_format_has_a_suite_here() -> None:
    tried = {type(reader_of(w)) for w in ("azure", "burstgpt", "mooncake", "servegen", "csv")}
    assert {type(reader) for reader in READERS} == tried


def read(tmp_path: Path, text: str, spec: str = "auto:{}", seed: int = 0) -> Workload:
    path = tmp_path / "some.trace"
    path.write_bytes(text.encode())
    return parse_workload(spec.format(path), seed=seed)


@pytest.mark.parametrize(
    ("first", "second", "gap_s"),
    [
        ("2023-11-16T18:17:03.9799600Z", "2023-11-16T18:17:04.0319600Z", 0.052),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00", 0.99007),
        ("2024-05-10 02:00:00+02:00", "2024-05-10 00:00:01", 1.0),
        ("2024-05-10T00:00:00+0000", "2024-05-10T00:00:00.5Z", 0.5),
    ],
)
def test_azure_stamps_of_every_release_keep_their_microseconds(
    tmp_path: Path, first: str, second: str, gap_s: float
) -> None:
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{first},10.0,5\n{second},20,6.0\n"
    workload = read(tmp_path, text)
    assert workload.arrival_s.tolist() == pytest.approx([0, gap_s], abs=1e-9)
    assert workload.input_tokens.tolist() == [10, 20]
    assert workload.output_tokens.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (AZURE_TEXT + "2024-05-10 00:00:01+00:00,110,0\n", 3),
        (BURST_TEXT + "120,GPT-4,300,0,300,API log\n121,GPT-4,0,0,0,API log\n", 3),
        (MOONCAKE_TEXT + '{"timestamp": 9, "input_length": 5, "output_length": 0}\n', 3),
        (OWN_TEXT + "2.0,5,0,\n", 3),
    ],
)
def test_rows_without_output_are_left_out_and_counted(tmp_path: Path, text: str, kept: int) -> None:
    workload = read(tmp_path, text)
    assert len(workload) == kept
    (cut,) = workload.source.cuts
    assert cut.kind is CutKind.NO_OUTPUT
    assert (cut.rows, cut.of_rows) == (workload.source.rows - kept, workload.source.rows)
    assert "without output tokens: left out" in str(cut)


def test_a_trace_with_nothing_but_silent_rows_says_what_was_cut(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="left out 1 of 1 rows"):
        read(tmp_path, "arrival_s,input_tokens,output_tokens\n1,5,0\n")


def test_a_burstgpt_row_that_was_answered_had_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 5: Request tokens '0'"):
        read(tmp_path, BURST_TEXT + "120,GPT-4,0,7,7,API log\n")


def test_burstgpt_with_sessions_and_elapsed_times_reads_alike(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens\n5.5,,1.5,x,7,8\n"
    )
    workload = read(tmp_path, text + "6,s,2,x,9,10\n")
    assert workload.arrival_s.tolist() == [0, 0.5]
    assert workload.output_tokens.tolist() == [8, 10]


def test_a_later_turn_of_a_session_comes_after_the_one_before(tmp_path: Path) -> None:
    workload = read(tmp_path, MOONCAKE_TEXT)
    assert workload.arrival_s.tolist() == [0, 27, 27.5]
    assert workload.arrivals[0].hash_ids == (7, 8, 9)
    assert workload.arrivals[1].hash_ids == ()


def test_a_delay_without_a_turn_before_is_no_time(tmp_path: Path) -> None:
    first = '{"delay": 5, "input_length": 1, "output_length": 1, "session_id": "a"}\n'
    with pytest.raises(TraceError, match="line 1: 'timestamp' is missing"):
        read(tmp_path, first)


def test_rows_without_a_length_take_the_one_of_the_spec_or_are_left_out(tmp_path: Path) -> None:
    text = '{"timestamp": 0, "input_length": 5}\n{"timestamp": 1, "input_length": 6}\n'
    assert read(tmp_path, text, "mooncake:{},output=12").output_tokens.tolist() == [12, 12]
    with pytest.raises(WorkloadError, match="left out 2 of 2 rows"):
        read(tmp_path, text, "mooncake:{}")


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    json_text = f'{{"arrival_s": 0, "input_tokens": 5, "output_tokens": 6, "prefix_id": "{odd}"}}\n'
    with pytest.raises(TraceError, match="line 1: not readable as JSON"):
        read(
            tmp_path, json_text, "csv:{}"
        )  # JSON forbids bare control characters, but not separators
    fine = json_text.replace("\x0b", "").replace("\x0c", "").replace("\x1c", "")
    assert read(tmp_path, fine).arrivals[0].prefix_id == "a\u2028b\u2029c\x85defg"
    rows = f'arrival_s,input_tokens,output_tokens,prefix_id\n0,5,6,"{odd}"\n1,5,6,x\n'
    assert read(tmp_path, rows).arrivals[0].prefix_id == odd


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "NaN", "Infinity", "-1", "1e308", "true", "[]"]
)
def test_a_time_that_is_no_time_is_named_with_its_line(tmp_path: Path, number: str) -> None:
    row = f'{{"arrival_s": {number}, "input_tokens": 5, "output_tokens": 6}}'
    with pytest.raises(TraceError, match="line 1: arrival_s"):
        read(tmp_path, row)


def test_half_a_character_in_a_prefix_is_named_with_its_line(tmp_path: Path) -> None:
    row = '{"arrival_s": 1, "input_tokens": 5, "output_tokens": 6, "prefix_id": "\\ud800"}'
    with pytest.raises(TraceError, match="line 1: prefix_id"):
        read(tmp_path, row)


def test_deep_nesting_is_an_error_of_its_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 1: not readable as JSON"):
        read(tmp_path, '{"a":' + "[" * 100_000, "csv:{}")


def test_rows_decades_apart_are_no_workload(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="apart; at most 1e"):
        read(tmp_path, "arrival_s,input_tokens,output_tokens\n0,5,6\n2e9,5,6\n")


def test_a_prefix_that_is_a_number_makes_prompts(tmp_path: Path) -> None:
    workload = read(tmp_path, OWN_JSON_TEXT)
    assert workload.arrivals[0].prefix_id == "7"
    assert len(PromptMaker(seed=0, vocab_size=9).make(0, workload.arrivals[0])) == 10


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n", "{}\n", "hello\n", '{"x": 1}\n', '"'])
def test_a_file_of_no_known_format_is_told_every_format(tmp_path: Path, text: str) -> None:
    for ask in (read, lambda *_: check_workload(f"auto:{tmp_path / 'some.trace'}")):
        with pytest.raises(TraceError, match="of no known format") as caught:
            ask(tmp_path, text)
        for reader in READERS:
            assert f"{reader.word}: {reader.form}" in str(caught.value)


def test_a_trace_that_a_shell_of_windows_has_redirected_says_how_it_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "redirected.csv"
    path.write_text(OWN_TEXT, encoding="utf-16")
    for word in ("auto", "csv"):
        with pytest.raises(TraceError, match="UTF-16"):
            check_workload(f"{word}:{path}")
    path.write_text(OWN_TEXT, encoding="utf-8-sig")
    assert len(parse_workload(f"auto:{path}", seed=0)) == 3


def test_a_rate_table_has_its_rates_and_lengths(tmp_path: Path) -> None:
    table = "window_start_s,rate_rps,mean_input_tokens,mean_output_tokens\n"
    table += "0,20,400,100\n100,0,,\n200,5,50,10\n"
    workload = read(tmp_path, table, "servegen:{}")
    early, late = workload.arrival_s < 100, workload.arrival_s >= 200
    assert int((early | late).sum()) == len(workload)
    assert int(early.sum()) == pytest.approx(2000, rel=0.1)
    assert int(late.sum()) == pytest.approx(500, rel=0.15)
    assert workload.input_tokens[early].mean() == pytest.approx(400, rel=0.1)
    assert workload.output_tokens[late].mean() == pytest.approx(10, rel=0.2)
    spread = workload.input_tokens[early].std() / workload.input_tokens[early].mean()
    assert spread == pytest.approx(1, rel=0.25)
    narrow = read(tmp_path, table, "servegen:{},input_cv=0,output_cv=0")
    assert set(narrow.input_tokens.tolist()) == {400, 50}


def test_only_the_wanted_part_of_a_rate_table_is_drawn(tmp_path: Path) -> None:
    table = "window_start_s,rate_rps,mean_input_tokens,mean_output_tokens\n"
    table += "".join(f"{i * 600},9e5,400,100\n" for i in range(1000))
    with pytest.raises(TraceError, match="take a part of the table"):
        read(tmp_path, table, "servegen:{}")
    part = read(tmp_path, table, "servegen:{},start=599.999,seconds=0.002")
    assert len(part) == pytest.approx(1800, rel=0.15)
    assert 0 <= part.arrival_s[0] <= part.arrival_s[-1] <= 0.002
    with pytest.raises(WorkloadError, match="at most 2000000"):
        read(tmp_path, table, "servegen:{},seconds=5")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,5,5", "line 3: window_start_s does not rise"),
        ("600,1,,5", "line 3: mean_input_tokens ''"),
        ("600,nan,5,5", "line 3: rate_rps 'nan'"),
        ("600,1,0,5", "line 3: mean_input_tokens 0"),
        ("2e9,1,5,5", "the window ends after"),
    ],
)
def test_a_rate_table_that_cannot_be_read_names_its_line(
    tmp_path: Path, row: str, message: str
) -> None:
    table = "window_start_s,rate_rps,mean_input_tokens,mean_output_tokens\n0,1,5,5\n"
    with pytest.raises(TraceError, match=message):
        read(tmp_path, f"{table}{row}\n", "servegen:{}")


@needs_traces
def test_the_public_traces_are_recognised() -> None:
    auto, named = (parse_workload(f"{k}:{AZURE},requests=500", seed=0) for k in ("auto", "azure"))
    assert auto.arrivals == named.arrivals
    assert len(parse_workload(f"auto:{MOONCAKE}", seed=0)) == 3993


@needs_traces
@pytest.mark.parametrize("table", sorted((TRACES / "servegen").glob("*.csv")), ids=lambda p: p.stem)
def test_an_hour_of_each_public_rate_table_has_its_rate(table: Path) -> None:
    spec = f"auto:{table},start=7200,seconds=60"
    check_workload(spec)
    workload = parse_workload(spec, seed=0)
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    rate = next(float(line[1]) for line in lines if line[0] == "7200")
    assert len(workload) == pytest.approx(rate * 60, rel=0.25)
    assert np.all((workload.arrival_s >= 0) & (workload.arrival_s < 60))


def test_checking_reads_the_first_rows_and_builds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = "".join(f"{i},5,6\n" for i in range(50_000))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows + "late,5,6\n")
    check_workload(f"auto:{path}")
    with pytest.raises(TraceError, match="line 50002"):
        parse_workload(f"auto:{path}", seed=0)
    path.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\nlate,5,6\n" + rows)
    with pytest.raises(TraceError, match="line 3"):
        check_workload(f"auto:{path}")


def test_checking_a_pipe_or_a_folder_does_not_wait_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(TraceError, match="no regular file"):
            check_workload(f"csv:{path}")


def test_a_first_row_longer_than_what_a_format_is_recognised_by_is_read_whole(
    tmp_path: Path,
) -> None:
    """A prompt of five million tokens has ten thousand ids of blocks."""
    ids = list(range(10**6, 10**6 + 10_000))
    row = {"timestamp": 0, "input_length": 5_120_000, "output_length": 1, "hash_ids": ids}
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps(row | {"timestamp": t}) for t in (0, 10)))
    assert path.stat().st_size > 2 * HEAD_BYTES
    check_workload(f"auto:{path}")
    assert len(parse_workload(f"auto:{path}", seed=0)) == 2
