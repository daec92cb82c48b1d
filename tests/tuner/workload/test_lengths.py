"""How lengths vary and how the clients of a closed loop start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.settings import Settings
from tuner.described.parse import describe_node
from tuner.spec.errors import WorkloadError
from tuner.workload.parse import check_workload, parse_workload
from tuner.workload.spec import WorkloadSpec
from tuner.workload.stretch import stretch

CLOSED = "closed:concurrency=8,requests=400"


def test_uniform_lengths_reach_both_ends_and_shares_are_of_the_nominal_one() -> None:
    spec = f"{CLOSED},input=uniform:0.8..1*100,output=uniform:5..8"
    workload = parse_workload(spec, seed=0)
    assert set(workload.input_tokens) == set(range(80, 101))
    assert set(workload.output_tokens) == {5, 6, 7, 8}
    assert parse_workload(spec, seed=0) == workload
    assert parse_workload(spec, seed=1) != workload


def test_a_lognormal_law_is_what_cv_says_too() -> None:
    spec = "poisson:rate=40,seconds=60,output=8,input="
    law = parse_workload(f"{spec}lognormal:500~0.5", seed=3)
    words = parse_workload(f"{spec}500,input_cv=0.5", seed=3)
    assert np.array_equal(law.input_tokens, words.input_tokens)
    assert law.input_tokens.mean() == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("input=uniform:0.8..1", "is from 0 to 1 tokens; .*uniform:0.8..1[*]1024"),
        ("input=uniform:20..10", "from 20 to 10 tokens"),
        ("input=normal:5~1", "normal:5~1 is no length; write 1024"),
        ("input=uniform:10", "uniform:10 is no length"),
        ("input=uniform:1..x", "input='x' is not a number"),
        ("input=lognormal:10~-1", "input=-1 must be at least 0"),
        ("input=uniform:1..1e9", "must be .*at most 1e[+]07"),
        ("input=uniform:5..9,input_cv=1", "leave input_cv= out"),
    ],
)
def test_a_wrong_law_is_named_with_the_way_out(words: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_workload(f"{CLOSED},output=8,{words}")


@given(st.text(alphabet="uniform:lognormal.*~0123456789 e-", max_size=24))
def test_any_text_of_a_law_is_read_or_refused(text: str) -> None:
    try:
        spec = WorkloadSpec.parse(f"{CLOSED},output=8,input={text}")
    except WorkloadError:
        return
    assert spec.words["input"] > 0


def test_clients_that_start_apart_wait_less_than_those_in_lockstep() -> None:
    node = describe_node(model="llama-3.1-8b", hardware="1xh100")
    settings = Settings(caps=node.backend.default_caps)
    spec = "closed:concurrency=16,requests=64,input=1024,output=64"

    def ttft_s(text: str) -> float:
        timings = node.simulate(settings, parse_workload(text, seed=0)).measurement.timings
        return float(np.mean([t.token_s[0] - t.sent_s for t in timings]))

    together, apart = ttft_s(spec), ttft_s(f"{spec},stagger_s=2")
    drawn = "closed:concurrency=16,requests=64,input=uniform:0.8..1*1024,output=uniform:0.8..1*64"
    assert apart < 0.7 * together
    assert ttft_s(drawn) < 0.9 * together


def test_the_first_requests_of_staggered_clients_are_spread_evenly() -> None:
    node = describe_node(model="llama-3.1-8b", hardware="1xh100")
    settings = Settings(caps=node.backend.default_caps)
    spec = "closed:concurrency=4,requests=8,input=64,output=256,stagger_s=0.4"
    result = node.simulate(settings, parse_workload(spec, seed=0))
    sent = [timing.sent_s for timing in result.measurement.timings]
    assert sent[:4] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert min(sent[4:]) > 0.3
    assert stretch(parse_workload(spec, seed=0), 2.0).closed.stagger_s == 0.4


def test_a_fixed_length_closed_loop_says_what_it_implies() -> None:
    fixed = f"{CLOSED},input=64,output=8"
    (told,) = parse_workload(fixed, seed=0).warnings
    assert "8 clients start at once" in told
    assert "input=uniform:0.8..1*64,output=uniform:0.8..1*8" in told
    for varied in (f"{fixed},stagger_s=1", f"{CLOSED},input=uniform:60..64,output=8"):
        assert parse_workload(varied, seed=0).warnings == ()
    assert (
        parse_workload("closed:concurrency=1,requests=9,input=64,output=8", seed=0).warnings == ()
    )
    assert parse_workload("poisson:rate=4,seconds=9,input=64,output=8", seed=0).warnings == ()


def test_a_cut_that_took_nothing_is_no_warning() -> None:
    spec = "poisson:rate=4,seconds=9,input=64,output=8"
    assert parse_workload(f"{spec},max_input=64", seed=0).warnings == ()
    (told,) = parse_workload(f"{spec},max_input=32", seed=0).warnings
    assert "max_input=32 shortened" in told


@pytest.mark.parametrize("process", ["step:rate=2,to=4,at=30", "ramp:rate=2,to=4"])
def test_requests_that_do_not_come_in_the_time_of_a_process_are_told(process: str) -> None:
    workload = parse_workload(f"{process},input=64,output=8,requests=1000", seed=0)
    assert workload.warnings == (
        f"workload: requests=1000, but only {len(workload)} come in its time",
    )
    assert (
        parse_workload(f"{process},input=64,output=8,requests=9", seed=0)
        .warnings[0]
        .endswith("rows")
    )
