"""What is written as a trace is read again as the same requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.spec.errors import WorkloadError
from tuner.workload.parse import Arrival, Workload, WorkloadSource, parse_workload
from tuner.workload.write import TraceForm, trace_text

SPECS = (
    "azure-like:seconds=600",
    "poisson:rate=3,input=50,output=9,input_cv=1,seconds=40",
    "burst:rate=1,peak=9,on_s=5,off_s=9,input=70,output=20,seconds=90,scale=2",
)
prefixes = st.none() | st.text(
    st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1
).filter(lambda text: text == text.strip())


def read_again(text: str, form: TraceForm, folder: Path) -> Workload:
    file = folder / "trace.csv"
    file.write_text(text)
    return parse_workload(f"{form}:{file}", seed=0)


@pytest.mark.parametrize("form", TraceForm)
@pytest.mark.parametrize("spec", SPECS)
def test_a_workload_comes_back_from_its_file(spec: str, form: TraceForm, tmp_path: Path) -> None:
    workload = parse_workload(spec, seed=3)
    again = read_again(trace_text(workload, form), form, tmp_path)
    assert again.input_tokens.tolist() == workload.input_tokens.tolist()
    assert again.output_tokens.tolist() == workload.output_tokens.tolist()
    shifted = workload.arrival_s - workload.arrival_s[0]
    assert (again.arrival_s - again.arrival_s[0]).tolist() == pytest.approx(shifted, abs=2e-7)
    assert trace_text(parse_workload(spec, seed=3), form) == trace_text(workload, form)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**5), prefixes),
        min_size=1,
        max_size=8,
    )
)
def test_our_own_columns_keep_every_request_to_the_bit(
    rows: list[tuple[float, int, int, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrivals = tuple(
        Arrival(arrival_s=at, input_tokens=given, output_tokens=asked, prefix_id=prefix)
        for at, given, asked, prefix in sorted(rows, key=lambda row: row[0])
    )
    source = WorkloadSource(spec="rows", seed=0, sha256="", rows=len(rows), span_s=0.0)
    text = trace_text(Workload(arrivals=arrivals, source=source), TraceForm.CSV)
    again = read_again(text, TraceForm.CSV, tmp_path_factory.mktemp("written"))
    first = arrivals[0].arrival_s
    for mine, found in zip(arrivals, again.arrivals, strict=True):
        assert found.arrival_s == pytest.approx(mine.arrival_s - first, abs=1e-9)
        assert (found.input_tokens, found.output_tokens) == (mine.input_tokens, mine.output_tokens)
        assert found.prefix_id == mine.prefix_id


def test_what_a_form_cannot_hold_is_refused_by_name() -> None:
    closed = parse_workload("closed:concurrency=2,input=5,output=5,requests=4", seed=0)
    with pytest.raises(WorkloadError, match="closed loop"):
        trace_text(closed, TraceForm.CSV)
    source = WorkloadSource(spec="rows", seed=0, sha256="", rows=1, span_s=0.0)
    shared = Arrival(arrival_s=0, input_tokens=1, output_tokens=1, prefix_id="a")
    with pytest.raises(WorkloadError, match="prefix_id"):
        trace_text(Workload(arrivals=(shared,), source=source), TraceForm.AZURE)
    hashed = Arrival(arrival_s=0, input_tokens=1, output_tokens=1, hash_ids=(1,))
    with pytest.raises(WorkloadError, match="blocks"):
        trace_text(Workload(arrivals=(hashed,), source=source), TraceForm.CSV)
