"""A server's buckets are judged by an SLA, with what they leave open."""

from __future__ import annotations

from typing import Any

import pytest

from policies.errors import PolicyInputError
from policies.histogram import Histogram
from policies.server_window import ServerWindow, attainment_of, judge_server, observe_server
from policies.sla import Sla

EDGES = (100.0, 200.0, 500.0)
SLA = Sla.parse("p95_ttft_ms<=200,p95_tpot_ms<=50,attainment>=0.9")


def histogram(*counts: float, edges: tuple[float, ...] = EDGES) -> Histogram:
    return Histogram(edges=edges, counts=counts, total=sum(counts) * 100.0)


def window(**changes: Any) -> ServerWindow:
    """Five seconds with 100 requests: 96 first tokens within 200 ms, all gaps within 50 ms."""
    usual: dict[str, Any] = {
        "window_s": 5.0,
        "arrived": 100.0,
        "finished": 100.0,
        "input_tokens": 6400.0,
        "output_tokens": 1600.0,
        "lengths_of": 100.0,
        "ended_input_tokens": 6400.0,
        "ended_output_tokens": 1600.0,
        "ttft_ms": histogram(90.0, 6.0, 4.0, 0.0),
        "tpot_ms": histogram(98.0, 2.0, edges=(50.0,)),
    }
    return ServerWindow(**(usual | changes))


def test_bounds_on_edges_are_judged_exactly() -> None:
    report = judge_server(SLA, window())
    assert report is not None
    assert report.is_met
    attainment = attainment_of(SLA, window())
    assert attainment is not None
    # 0.96 met the one and 0.98 the other: of both it may be 0.94 to 0.96.
    assert attainment.low == pytest.approx(0.94)
    assert attainment.value == pytest.approx(0.96 * 0.98)
    assert attainment.high == pytest.approx(0.96)


def test_a_bound_between_edges_leaves_a_range() -> None:
    found = attainment_of(Sla.parse("p95_ttft_ms<=150"), window())
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.90), pytest.approx(0.96))
    assert found.value == pytest.approx(0.93)


def test_failed_requests_are_misses() -> None:
    found = attainment_of(SLA, window(failed=50.0))
    assert found is not None
    assert found.high == pytest.approx(0.48)


def test_what_a_server_does_not_count_is_neither_met_nor_missed() -> None:
    report = judge_server(Sla.parse("p95_ttft_ms<=200,p95_e2e_ms<=1"), window())
    assert report is not None
    assert report.is_met
    assert report.attainment is None
    assert judge_server(Sla.parse("p95_e2e_ms<=1"), window()) is None


def test_gaps_between_tokens_stand_for_tpot_where_it_is_not_counted() -> None:
    older = window(tpot_ms=None, itl_ms=histogram(10.0, 990.0, edges=(50.0,)))
    report = judge_server(SLA, older)
    assert older.judges_tpot_by_itl
    assert report is not None
    assert [str(v.constraint) for v in report.violations] == ["p95_tpot_ms<=50", "attainment>=0.9"]


def test_an_observation_has_load_and_latencies_by_their_names() -> None:
    seen = observe_server([window(), window(arrived=50.0)], SLA, age_s=1.0)
    assert seen is not None
    assert seen.load.rate_rps == 15.0
    assert (seen.load.mean_input_tokens, seen.load.mean_output_tokens) == (64.0, 16.0)
    assert (seen.load.num_requests, seen.load.is_sla_met) == (200, True)
    assert seen.metrics["p50_ttft_ms"] < 100.0
    assert seen.metrics["throughput_tokens_per_s"] == 320.0
    assert observe_server([], SLA, age_s=0.0) is None


def test_a_silent_window_is_a_load_of_zero_and_no_verdict() -> None:
    silent = ServerWindow(window_s=5.0, arrived=0.0, finished=0.0)
    seen = observe_server([silent], SLA, age_s=0.0)
    assert seen is not None
    assert (seen.load.rate_rps, seen.load.is_sla_met, seen.report) == (0.0, None, None)
    assert seen.load.mean_input_tokens is None


@pytest.mark.parametrize(
    "changes", [{"window_s": 0.0}, {"arrived": -1.0}, {"arrived": 1e9}, {"finished": float("nan")}]
)
def test_a_window_that_cannot_have_happened_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PolicyInputError):
        window(**changes)
