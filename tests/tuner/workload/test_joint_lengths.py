"""Processes whose prompts and answers are a trace's, drawn together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.spec.errors import TunerError, WorkloadError
from tuner.workload.parse import check_workload, parse_workload
from tuner.workload.redraw import redraw
from tuner.workload.spec import WorkloadSpec

PAIRS = ((10, 200), (1000, 5), (1000, 6), (40, 40))
LENGTHS = st.integers(1, 5000)


def trace(folder: Path, pairs: tuple[tuple[int, int], ...] = PAIRS, name: str = "t.csv") -> Path:
    path = folder / name
    rows = [f"{i},{inputs},{outputs}" for i, (inputs, outputs) in enumerate(pairs)]
    path.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows, ""]))
    return path


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_every_request_has_the_lengths_of_one_row(
    tmp_path: Path, pairs: list[tuple[int, int]], seed: int
) -> None:
    path = trace(tmp_path, tuple(pairs))
    spec = f"closed:concurrency=4,requests=64,lengths=csv:{path}"
    workload = parse_workload(spec, seed=seed)
    drawn = {(a.input_tokens, a.output_tokens) for a in workload.arrivals}
    assert len(workload.arrivals) == 64
    assert drawn <= set(pairs)
    assert parse_workload(spec, seed=seed) == workload


@pytest.mark.parametrize("kind", ["auto", "csv"])
def test_rows_come_as_often_as_the_trace_has_them(tmp_path: Path, kind: str) -> None:
    spec = f"poisson:rate=100,seconds=60,lengths={kind}:{trace(tmp_path, (*PAIRS, PAIRS[0]))}"
    workload = parse_workload(spec, seed=0)
    found = Counter((a.input_tokens, a.output_tokens) for a in workload.arrivals)
    shares = {pair: count / len(workload) for pair, count in found.items()}
    assert shares == pytest.approx(dict.fromkeys(PAIRS, 0.2) | {PAIRS[0]: 0.4}, abs=0.05)
    # Another draw of the traffic is another draw of both, not the same requests rearranged.
    again = redraw(workload, 1)
    assert {(a.input_tokens, a.output_tokens) for a in again.arrivals} == set(PAIRS)
    assert again.arrivals != workload.arrivals


def test_the_file_of_a_spec_may_lie_elsewhere_and_have_a_comma_in_its_name(tmp_path: Path) -> None:
    path = trace(tmp_path, name="a,b.csv")
    text = f"poisson:rate=5,lengths=csv:{path},seconds=10,max_output=7"
    spec = WorkloadSpec.parse(text)
    assert spec.path == path
    assert not spec.is_trace
    moved = trace(tmp_path, name="c.csv")
    assert WorkloadSpec.parse(spec.at(moved)).path == moved
    assert parse_workload(spec.at(moved), seed=0).arrivals == parse_workload(text, seed=0).arrivals
    assert parse_workload(text, seed=0).output_tokens.max() <= 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lengths=azur:x", "lengths=azur:x is no trace .did you mean .azure.*auto:PATH"),
        ("lengths=auto:", "lengths=auto: is no trace"),
        ("lengths=auto:x,input=5", "lengths= says both lengths; leave input= out"),
        ("lengths=auto:x,output_cv=1", "leave output_cv= out"),
        ("lengths=auto:x,lengths=auto:y", "lengths= stands twice"),
        ("lengths=auto:/no/such", "No such file"),
        ("lenghts=auto:x", "unknown word 'lenghts'.*lengths"),
    ],
)
def test_a_wrong_word_is_named_with_the_way_out(words: str, message: str) -> None:
    with pytest.raises(TunerError, match=message):
        check_workload(f"poisson:rate=5,{words}")


def test_what_has_lengths_of_its_own_takes_none() -> None:
    with pytest.raises(WorkloadError, match="azure-like has lengths of its own"):
        check_workload("azure-like:lengths=auto:x")
