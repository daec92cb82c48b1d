"""The conformance suite of ``tuner.workload.traces.TraceReader``.

A test module subclasses :class:`TraceReaderContract` and provides ``reader`` and ``example``:
bytes of a small trace with at least three rows, all of them fine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.spec.errors import TraceError, WorkloadError
from tuner.workload.parse import Workload, parse_workload
from tuner.workload.rows import Wanted
from tuner.workload.trace_file import TraceFile
from tuner.workload.traces import READERS, TraceReader

WANTED = Wanted(seed=3)
# What may stand in a file: any bytes, and what is nearly a trace.
NEARLY = st.text(alphabet='0123456789.,-+eE:TZ "{}[]\n\r\u2028\x00abinf', max_size=80)
QUICK = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


def trace_of(raw: bytes) -> TraceFile:
    return TraceFile(path=Path("trace"), raw=raw)


class TraceReaderContract:
    """Subclasses provide the fixtures ``reader`` and ``example``."""

    def test_its_example_is_recognised_by_it_alone(
        self, reader: TraceReader, example: bytes
    ) -> None:
        found = [other.word for other in READERS if other.recognises(trace_of(example))]
        assert found == [reader.word]

    def test_rows_come_in_order_with_at_least_one_token_each(
        self, reader: TraceReader, example: bytes
    ) -> None:
        rows = reader.read(trace_of(example), WANTED)
        assert len(rows) >= 3
        assert np.all(np.diff(rows.arrival_s) >= 0)
        assert rows.arrival_s[0] >= 0
        assert min(rows.input_tokens.min(), rows.output_tokens.min()) >= 1
        assert rows.sha256 == trace_of(example).sha256

    def test_the_same_seed_gives_the_same_rows(self, reader: TraceReader, example: bytes) -> None:
        first, again = (reader.read(trace_of(example), WANTED) for _ in range(2))
        assert first.arrivals() == again.arrivals()

    @pytest.mark.parametrize("ending", [b"\n", b"\n\n", b"\r\n\r\n", b"\n  \n\t\n"])
    def test_blank_lines_at_the_end_are_no_rows(
        self, reader: TraceReader, example: bytes, ending: bytes
    ) -> None:
        plain = reader.read(trace_of(example.rstrip()), WANTED)
        longer = reader.read(trace_of(example.rstrip() + ending), WANTED)
        assert longer.arrivals() == plain.arrivals()

    def test_windows_line_ends_and_a_byte_order_mark_change_nothing(
        self, reader: TraceReader, example: bytes
    ) -> None:
        other = b"\xef\xbb\xbf" + example.replace(b"\n", b"\r\n")
        assert reader.recognises(trace_of(other))
        rows = reader.read(trace_of(other), WANTED)
        assert rows.arrivals() == reader.read(trace_of(example), WANTED).arrivals()

    def test_a_row_that_cannot_be_read_is_named_by_its_line(
        self, reader: TraceReader, example: bytes
    ) -> None:
        lines = example.splitlines(keepends=True)
        broken = b"".join([*lines[:2], b"nonsense\n", *lines[2:]])
        for read in (reader.check, lambda file: reader.read(file, WANTED)):
            with pytest.raises(TraceError, match=r"trace: line 3"):
                read(trace_of(broken))

    def test_an_empty_file_says_so(self, reader: TraceReader) -> None:
        assert not reader.recognises(trace_of(b""))
        with pytest.raises(TraceError, match="is empty"):
            reader.read(trace_of(b""), WANTED)

    @QUICK
    @given(data=st.data())
    def test_any_bytes_give_a_workload_or_the_domain_error(
        self, reader: TraceReader, example: bytes, tmp_path: Path, data: st.DataObject
    ) -> None:
        raw = data.draw(_mutated(example) | st.binary(max_size=200))
        path = tmp_path / "any.trace"
        path.write_bytes(raw)
        for word in (reader.word, "auto"):
            try:
                workload = parse_workload(f"{word}:{path},seconds=100", seed=1)
            except WorkloadError as error:
                str(error).encode()  # it can be printed
            else:
                _is_sound(workload)


def _is_sound(workload: Workload) -> None:
    """Whatever was read, its facts are finite numbers."""
    assert json.dumps(workload.describe(), allow_nan=False).encode()
    times = workload.arrival_s
    assert np.all(np.isfinite(times))
    assert np.all(np.diff(times) >= 0)
    # Texts can be sent on.
    assert all((a.prefix_id or "").encode() is not None for a in workload.arrivals)
    assert replace(workload) == workload


@st.composite
def _mutated(draw: st.DrawFn, example: bytes) -> bytes:
    """The example with one stretch of it replaced by what is nearly a trace."""
    start = draw(st.integers(min_value=0, max_value=len(example)))
    end = draw(st.integers(min_value=start, max_value=min(len(example), start + 12)))
    return example[:start] + draw(NEARLY).encode() + example[end:]
