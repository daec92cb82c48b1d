"""The same traffic at another rate: how many requests there are, and how they come."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.workload.parse import parse_workload
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload, gap_cv, peak_to_mean

GAMMA = "gamma:rate=4,cv={cv},input=10,output=2,input_cv=1,requests=1200"


@settings(max_examples=12, deadline=None)
@given(
    factor=st.floats(0.3, 6),
    cv=st.sampled_from((0.3, 1, 2)),
    seed=st.integers(0, 2),
    draw=st.integers(0, 3),
)
def test_count_time_burstiness_and_course_are_kept(
    factor: float, cv: float, seed: int, draw: int
) -> None:
    load = parse_workload(GAMMA.format(cv=cv), seed=seed)
    found = stretch(load, factor, seed=draw)
    times = found.arrival_s
    assert len(found) == pytest.approx(factor * len(load), abs=1)
    assert (times[1:] >= times[:-1]).all()
    assert found.span_s == pytest.approx(load.span_s, rel=0.02)
    before, after = gap_cv(load.arrival_s), gap_cv(times)
    assert before is not None
    assert after == pytest.approx(before, rel=0.2)
    course = peak_to_mean(load.arrival_s)
    # A minute of few requests is the busiest by luck, too: three deviations of its count.
    luck = 3 * max(cv, 1) / math.sqrt(60 * len(found) / found.span_s)
    assert peak_to_mean(times) == pytest.approx(course, rel=max(0.1, luck))
    assert set(found.input_tokens) <= set(load.input_tokens)


def test_the_course_of_a_bursty_rate_is_kept_by_the_minute() -> None:
    load = parse_workload("azure-like:", seed=1)
    course = peak_to_mean(load.arrival_s)
    assert course is not None
    assert course > 3
    for factor in (0.5, 1.7, 4):
        assert peak_to_mean(stretch(load, factor, seed=2).arrival_s) == pytest.approx(
            course, rel=0.1
        )


def test_its_own_rate_is_the_workload_itself_and_other_draws_are_not() -> None:
    load = parse_workload(GAMMA.format(cv=2), seed=0)
    assert stretch(load, 1.0) is load
    first, second = stretch(load, 1.0, seed=1), stretch(load, 1.0, seed=2)
    assert first.arrivals != load.arrivals != second.arrivals != first.arrivals
    assert stretch(load, 1.0, seed=1) == first


def test_few_requests_go_on_for_longer_at_the_same_rate() -> None:
    load = parse_workload(GAMMA.format(cv=1), seed=0)
    found = stretch(load, 0.01, least=100)
    assert 100 <= len(found) <= 125
    assert found.rate_rps is not None
    assert load.rate_rps is not None
    assert found.rate_rps == pytest.approx(load.rate_rps / 100, rel=0.1)


def test_a_closed_loop_gets_more_clients_that_send_as_much_each() -> None:
    load = parse_workload("closed:concurrency=8,input=64,output=4,input_cv=1,requests=80", seed=0)
    found = stretch(load, 1.5)
    assert found.closed is not None
    assert (found.closed.concurrency, len(found)) == (12, 120)
    assert found.arrivals[80] == load.arrivals[0]


def hits(workload: Workload) -> float:
    """The share of requests whose first block came before."""
    seen: set[int] = set()
    found = 0
    for arrival in workload.arrivals:
        found += arrival.hash_ids[0] in seen
        seen.add(arrival.hash_ids[0])
    return found / len(workload)


@pytest.mark.parametrize("spec", [GAMMA.format(cv=1), "closed:concurrency=8,input=64,requests=400,"
                                  "output=4"])  # fmt: skip
def test_what_is_repeated_finds_no_more_of_itself_in_a_prefix_cache(spec: str) -> None:
    load = parse_workload(spec, seed=0)
    arrivals = load.arrivals
    alone = replace(load, arrivals=tuple(replace(a, hash_ids=(n,)) for n, a in enumerate(arrivals)))
    named = replace(
        load, arrivals=tuple(replace(a, prefix_id=str(n)) for n, a in enumerate(arrivals))
    )
    pairs = replace(
        load, arrivals=tuple(replace(a, hash_ids=(n // 2,)) for n, a in enumerate(arrivals))
    )
    for factor, least in ((3.3, 1), (0.4, 2 * len(load)), (1.0, 3 * len(load))):
        for seed in (0, 1):
            assert not stretch(alone, factor, seed=seed, least=least).shares_beginnings
            assert not stretch(named, factor, seed=seed, least=least).shares_beginnings
    assert hits(stretch(pairs, 3.0)) == pytest.approx(hits(pairs), abs=0.05)
