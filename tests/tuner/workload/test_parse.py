"""Workload SPECs: every form, every cut reported, the same seed the same requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.workload.test_traces import AZURE, needs_traces
from tuner.spec.errors import TunerError, WorkloadError
from tuner.workload.parse import CutKind, Workload, check_workload, parse_workload
from tuner.workload.synthetic import gamma_times
from tuner.workload.workload import MOST_BINS, over_time

EVERY_PROCESS = (
    "poisson:rate=4,input=512,output=64",
    "gamma:rate=4,cv=3,input=512,output=64",
    "step:rate=2,to=8,at=30,input=10,output=5",
    "ramp:rate=1,to=10,input=10,output=5",
    "burst:rate=2,peak=20,on_s=5,off_s=20,input=10,output=5",
    "azure-like:seconds=200",
    "closed:concurrency=16,input=1024,output=256,requests=160",
    "poisson:rate=4,input=512,output=64,input_cv=1.5,output_cv=0.5",
)


def parse(spec: str, seed: int = 0) -> Workload:
    return parse_workload(spec, seed=seed)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = "".join(f"{i * 2.0},{100 * (i + 1)},{10 * (i + 1)}\n" for i in range(10))
    path = tmp_path / "own, with a comma.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    return path


@pytest.mark.parametrize("spec", EVERY_PROCESS)
def test_every_process_is_seeded_ordered_and_describes_itself(spec: str) -> None:
    workload = parse(spec)
    assert workload == parse(spec)
    assert workload != parse(spec, seed=1)
    assert np.all(np.diff(workload.arrival_s) >= 0)
    assert workload.input_tokens.min() >= 1
    assert workload.output_tokens.min() >= 1
    facts = json.loads(json.dumps(workload.describe(), allow_nan=False))
    assert facts["spec"] == spec
    assert len(facts["sha256"]) == 64
    assert sum(map(sum, facts["joint_histogram"]["counts"])) == facts["rows"] == len(workload)


@given(span_s=st.floats(0, 1e12), count=st.integers(1, 50))
@settings(deadline=None)
def test_arrivals_over_time_are_all_counted_in_few_stretches(span_s: float, count: int) -> None:
    told = over_time(np.linspace(5.0, 5.0 + span_s, count))
    assert sum(told["counts"]) == count
    assert len(told["counts"]) <= MOST_BINS
    assert told["bin_s"] > 0


def test_a_poisson_process_has_its_rate_and_a_gap_cv_of_one() -> None:
    facts = parse("poisson:rate=20,input=5,output=5,seconds=500").describe()
    assert facts["rate_rps"] == pytest.approx(20, rel=0.05)
    assert facts["gap_cv"] == pytest.approx(1, abs=0.05)
    assert facts["input_tokens"]["max"] == 5


def test_a_gamma_process_has_the_cv_it_was_asked_for() -> None:
    facts = parse("gamma:rate=20,cv=3,input=5,output=5,seconds=1000").describe()
    assert facts["rate_rps"] == pytest.approx(20, rel=0.1)
    assert facts["gap_cv"] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("cv", [0.1, 5.0])
def test_a_window_of_a_gamma_process_holds_as_many_requests_as_its_rate_says(cv: float) -> None:
    """Begun with a whole gap it holds a fifth more at this cv, and at 10 nearly twice as many."""
    draws = (
        gamma_times(np.random.default_rng(seed), rate_rps=1, cv=cv, seconds=60)
        for seed in range(500)
    )
    assert np.mean([len(times) for times in draws]) == pytest.approx(60, rel=0.05)


def test_a_step_and_a_ramp_have_their_rates_where_they_should() -> None:
    step = parse("step:rate=5,to=50,at=100,input=5,output=5,seconds=200").arrival_s
    assert int((step < 100).sum()) == pytest.approx(500, rel=0.15)
    assert int((step >= 100).sum()) == pytest.approx(5000, rel=0.15)
    ramp = parse("ramp:rate=0.001,to=40,input=5,output=5,seconds=200").arrival_s
    assert int((ramp < 100).sum()) == pytest.approx(1000, rel=0.15)
    assert int((ramp >= 100).sum()) == pytest.approx(3000, rel=0.15)


def test_bursts_are_burstier_than_their_mean_rate() -> None:
    burst = "burst:rate=2,peak=40,on_s=10,off_s=30,input=5,output=5,seconds=2000"
    facts = parse(burst).describe()
    assert facts["rate_rps"] == pytest.approx((2 * 30 + 40 * 10) / 40, rel=0.3)
    assert facts["gap_cv"] > 1.8


def test_lengths_have_the_mean_and_spread_they_were_asked_for() -> None:
    facts = parse("poisson:rate=50,input=400,output=60,input_cv=1,seconds=400")
    assert facts.input_tokens.mean() == pytest.approx(400, rel=0.05)
    assert facts.input_tokens.std() / facts.input_tokens.mean() == pytest.approx(1, rel=0.15)
    assert set(facts.output_tokens.tolist()) == {60}


def test_azure_like_has_the_published_statistics_of_the_trace() -> None:
    facts = [parse("azure-like:", seed=seed).describe() for seed in range(12)]

    def mean(*path: str) -> float:
        values = []
        for fact in facts:
            value = fact
            for key in path:
                value = value[key]
            values.append(value)
        return float(np.mean(values))

    assert mean("rate_rps") == pytest.approx(2.57, rel=0.1)
    assert mean("gap_cv") == pytest.approx(13, rel=0.1)
    assert mean("peak_to_mean_per_minute") == pytest.approx(4.2, rel=0.15)
    assert mean("input_tokens", "mean") == pytest.approx(2048, rel=0.03)
    assert mean("input_tokens", "p50") == pytest.approx(1469, rel=0.03)
    assert mean("input_tokens", "p95") == pytest.approx(7303, rel=0.03)
    assert mean("output_tokens", "mean") == pytest.approx(28, rel=0.08)
    assert mean("output_tokens", "p50") == pytest.approx(13, abs=0.5)
    assert mean("output_tokens", "p95") == pytest.approx(90, rel=0.05)


def test_a_closed_loop_keeps_its_concurrency_and_lengths() -> None:
    workload = parse("closed:concurrency=16,input=1024,output=256,requests=160,seconds=30,scale=2")
    assert workload.closed is not None
    assert workload.closed.concurrency == 32
    assert workload.closed.limit_s == 30
    assert len(workload) == 160
    assert workload.rate_rps is None


def test_a_path_may_hold_a_comma(trace: Path) -> None:
    assert len(parse(f"csv:{trace},requests=4")) == 4


def test_every_cut_is_made_in_order_and_reported(trace: Path) -> None:
    spec = f"csv:{trace},start=4,seconds=10,requests=4,max_input=450,max_output=35,scale=2"
    workload = parse(spec)
    # Rows 2..6 stand in the window, the first four stay; 300, 400, 500, 600 input tokens.
    assert workload.input_tokens.tolist() == [300, 400, 450, 450]
    assert workload.output_tokens.tolist() == [30, 35, 35, 35]
    assert workload.arrival_s.tolist() == [0, 1, 2, 3]
    cuts = {cut.kind: cut for cut in workload.source.cuts}
    assert list(cuts) == [
        CutKind.START,
        CutKind.SECONDS,
        CutKind.REQUESTS,
        CutKind.MAX_INPUT,
        CutKind.MAX_OUTPUT,
    ]
    assert [cut.rows for cut in cuts.values()] == [2, 3, 1, 2, 3]
    assert [cut.of_rows for cut in cuts.values()] == [10, 8, 5, 4, 4]
    assert (cuts[CutKind.MAX_INPUT].tokens, cuts[CutKind.MAX_INPUT].largest) == (200, 600)
    assert workload.source.rows == 10
    assert workload.source.scale == 2
    assert "shortened 2 of 4 rows" in str(cuts[CutKind.MAX_INPUT])


def test_without_options_nothing_is_cut(trace: Path) -> None:
    workload = parse(f"csv:{trace}")
    assert workload.source.cuts == ()
    assert len(workload) == workload.source.rows == 10


def test_a_process_that_ends_with_its_last_request_leaves_none_out() -> None:
    workload = parse("poisson:rate=2,input=5,output=5,requests=30")
    assert len(workload) == workload.source.rows == 30
    assert workload.source.cuts == ()
    # A window that was asked for holds more, and that is told.
    (cut,) = parse("poisson:rate=2,input=5,output=5,requests=30,seconds=60").source.cuts
    assert cut.kind is CutKind.REQUESTS


def test_keeping_a_share_thins_by_seed(trace: Path) -> None:
    spec = "poisson:rate=100,input=5,output=5,seconds=50,keep=0.2"
    workload = parse(spec)
    assert len(workload) == pytest.approx(1000, rel=0.15)
    assert workload.source.cuts[0].kind is CutKind.KEEP
    assert workload == parse(spec)


def test_prompts_shortened_lose_the_hash_ids_beyond_their_end(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"timestamp":0,"input_length":1500,"output_length":4,"hash_ids":[7,8,9]}\n')
    assert parse(f"mooncake:{path},max_input=600").arrivals[0].hash_ids == (7, 8)


@needs_traces
def test_a_real_trace_is_scaled_and_cut_with_its_facts() -> None:
    workload = parse(f"azure:{AZURE},seconds=900,scale=2")
    assert len(workload) == 2598
    assert workload.span_s == pytest.approx(450, abs=1)
    facts = workload.describe()
    assert facts["source_rows"] == 8819
    assert facts["cuts"][0]["rows"] == 8819 - 2598
    assert len(parse(f"azure:{AZURE},requests=2832")) == 2832


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "unknown kind 'nonsense'"),
        ("weibull:rate=3", "unknown kind 'weibull'"),
        ("my/trace.csv", "(a file is auto:my/trace.csv)"),
        ("poison:rate=3", "unknown kind 'poison' (did you mean 'poisson'"),
        ("poisson:rte=4,input=5,output=5", "unknown word 'rte' (did you mean 'rate'"),
        ("poisson:rate=4,input=5", "output= is missing"),
        ("poisson:rate=4,input=5,output=5,burst=3", "unknown word 'burst'"),
        ("poisson:rate=fast,input=5,output=5", "rate='fast' is not a number"),
        ("poisson:rate=0,input=5,output=5", "rate=0 must be above 0"),
        ("poisson:rate=-1,input=5,output=5", "rate=-1 must be above 0"),
        ("poisson:rate=inf,input=5,output=5", "must be above 0"),
        ("poisson:rate=4,rate=5,input=5,output=5", "rate= stands twice"),
        ("poisson:rate=4,input=5,output=5,max_input=1.5", "not a whole number"),
        ("poisson:rate=4,input=5,output=5,keep=2", "at most 1"),
        ("poisson:rate=0.001,input=5,output=5,seconds=1", "nothing arrives within 1 s"),
        ("poisson:", "rate= is missing"),
        ("closed:concurrency=4,input=5,output=5", "requests= is missing"),
        ("closed:concurrency=4,input=5,output=5,requests=4,start=1", "no meaning"),
        ("azure:", "no path"),
        ("azure:/nowhere/trace.csv", "No such file"),
        ("azure:/nowhere/trace.csv,rate=4", "unknown word 'rate'"),
        ("azure:/nowhere/a,b=1.csv", "a file with ',b=' in its path: rename it"),
    ],
)
def test_a_spec_that_cannot_be_read_says_why(spec: str, message: str) -> None:
    with pytest.raises(TunerError) as caught:
        parse(spec)
    assert message in str(caught.value)


MIX = "input=1,output=1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"poisson:rate=1e308,{MIX}", "rate=1e308 must be at least 1e-06 and at most 1e+07"),
        (f"poisson:rate=1e-308,{MIX}", "rate=1e-308 must be at least 1e-06"),
        (f"poisson:rate=nan,{MIX}", "rate=nan must be above 0 and finite"),
        (f"poisson:rate=4,{MIX},seconds=1e12", "seconds=1e12 must be at least 1e-06 and at most"),
        (f"poisson:rate=1e6,{MIX},seconds=1000", "about 1e+09 arrivals; at most 10000000"),
        (f"poisson:rate=1e-6,{MIX},requests=2000", "requests=2000 at rate=1e-06 last"),
        (f"poisson:rate=5e4,{MIX}", "requests are left; at most 2000000"),
        ("poisson:rate=1e4,input=9e6,output=1", "tokens in all; at most 100000000000"),
        ("poisson:rate=4,input=1e300,output=1", "input=1e300 must be"),
        (f"poisson:rate=4,{MIX},max_input=1e300", "max_input=1e300 must be"),
        (f"poisson:rate=4,{MIX},scale=1e308", "scale=1e308 must be"),
        (f"poisson:rate=4,{MIX},scale=1e-308", "scale=1e-308 must be"),
        (f"poisson:rate=4,{MIX},input_scale=1e308", "input_scale=1e308 must be"),
        (f"poisson:rate=4,{MIX},input_cv=1e300", "input_cv=1e300 must be"),
        (f"poisson:rate=4,{MIX},start=1e308", "start=1e308 must be"),
        (f"gamma:rate=4,cv=1e300,{MIX}", "cv=1e300 must be"),
        (f"gamma:rate=4,cv=1e-300,{MIX}", "cv=1e-300 must be"),
        (f"step:rate=2,to=3,at=1e308,{MIX}", "at=1e308 must be"),
        (f"step:rate=2,to=3,at=90,{MIX}", "at=90 is not before its end after 60 s"),
        (f"burst:rate=2,peak=9,on_s=1e-300,off_s=1e-300,{MIX}", "on_s=1e-300 must be"),
        (f"burst:rate=2,peak=9,on_s=1e-5,off_s=1e-5,{MIX}", "bursts; at most 500000"),
        ("azure-like:seconds=1e8", "arrivals; at most 10000000"),
        (f"closed:concurrency=1e300,{MIX},requests=2", "concurrency=1e300 must be"),
        (f"closed:concurrency=1e5,{MIX},requests=2,scale=1e5", "concurrency times scale"),
        (f"closed:concurrency=1,{MIX},requests=1e15", "requests=1e15 must be"),
        ("csv:/\ud800", "a lone surrogate"),
        ("csv:/a\0b", "a null character"),
        ("csv:" + "x" * 5000, "5004 characters; at most 4096"),
    ],
)
def test_a_number_beyond_its_bound_is_refused_unbuilt_with_the_bound(
    spec: str, message: str
) -> None:
    for ask in (check_workload, parse):
        with pytest.raises(WorkloadError) as caught:
            ask(spec)
        assert message in str(caught.value)
        assert str(caught.value).encode()


@pytest.mark.parametrize("spec", EVERY_PROCESS)
def test_what_can_be_built_passes_the_check(spec: str) -> None:
    check_workload(spec)


def test_a_workload_that_grew_too_large_says_which_cut_helps(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,9000000,5\n9e8,5,5\n")
    with pytest.raises(WorkloadError, match=r"one input has 90000000 tokens; .* add max_input="):
        parse(f"csv:{path},input_scale=10")
    with pytest.raises(WorkloadError, match="its last request comes after"):
        parse(f"csv:{path},scale=0.1")


WORDS = (
    *("rate", "to", "at", "cv", "peak", "on_s", "off_s", "input", "output", "input_cv"),
    *("requests", "seconds", "start", "scale", "keep", "max_input", "input_scale", "concurrency"),
)
words = st.sampled_from(WORDS)
numbers = st.sampled_from(["1e308", "1e-308", "inf", "nan", "0", "-1", "1e7", "1e-6", "4", "0.5"])


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["poisson", "gamma", "step", "ramp", "burst", "azure-like", "closed", "csv"]),
    st.lists(st.tuples(words, numbers), max_size=8, unique_by=lambda pair: pair[0]),
    st.text(max_size=5),
)
def test_any_text_passes_the_check_or_is_a_workload_error(
    kind: str, options: list[tuple[str, str]], rest: str
) -> None:
    for text in (
        f"{kind}:" + ",".join("=".join(o) for o in options) + rest,
        rest,
        f"{kind}:{rest}",
    ):
        try:
            check_workload(text)
        except WorkloadError as error:
            str(error).encode()  # it can be printed


def test_a_window_after_the_end_leaves_nothing_and_says_what_was_cut(trace: Path) -> None:
    with pytest.raises(WorkloadError, match="start=100 left out 10 of 10 rows"):
        parse(f"csv:{trace},start=100")


@settings(deadline=None, max_examples=30)
@given(
    st.floats(min_value=0.1, max_value=20),
    st.sampled_from([s for s in EVERY_PROCESS if not s.startswith("closed")]),
)
def test_scaling_changes_the_rate_and_nothing_else(scale: float, spec: str) -> None:
    plain, scaled = parse(spec), parse(f"{spec},scale={scale!r}")
    assert np.allclose(scaled.arrival_s * scale, plain.arrival_s)
    assert np.array_equal(scaled.input_tokens, plain.input_tokens)
    assert np.array_equal(scaled.output_tokens, plain.output_tokens)
    assert scaled.source.sha256 == plain.source.sha256


@settings(deadline=None, max_examples=30)
@given(st.integers(min_value=1, max_value=3000), st.integers(min_value=1, max_value=200))
def test_length_cuts_account_for_every_token(max_input: int, max_output: int) -> None:
    spec = "azure-like:seconds=300"
    plain = parse(spec)
    cut = parse(f"{spec},max_input={max_input},max_output={max_output}")
    by_kind = {c.kind: c for c in cut.source.cuts}
    assert len(cut) == len(plain)
    assert cut.input_tokens.max() <= max_input
    assert plain.input_tokens.sum() - cut.input_tokens.sum() == by_kind[CutKind.MAX_INPUT].tokens
    assert plain.output_tokens.sum() - cut.output_tokens.sum() == by_kind[CutKind.MAX_OUTPUT].tokens


def test_synthetic_workloads_need_neither_pandas_nor_torch() -> None:
    code = (
        "import sys; from tuner.workload.parse import parse_workload; "
        "parse_workload('azure-like:seconds=60', seed=0); "
        "sys.exit(','.join(m for m in ('pandas', 'torch', 'sklearn') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
