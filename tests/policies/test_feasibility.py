"""Whether a request alone meets an SLA: only what is certain is called infeasible."""

from __future__ import annotations

import pytest

from policies.feasibility import is_feasible_when_idle
from policies.points import Estimate
from policies.sla import Sla


def around(value: float) -> Estimate:
    return Estimate(value=value, low=0.8 * value, high=1.2 * value)


ALONE = {
    "mean_ttft_ms": around(100),
    "p50_ttft_ms": around(100),
    "p95_ttft_ms": around(200),
    "p50_itl_ms": around(10),
    "p95_itl_ms": around(20),
}


@pytest.mark.parametrize(
    ("sla", "is_feasible"),
    [
        ("p50_ttft_ms<=70", False),
        ("p95_ttft_ms<=70", False),
        ("p99_ttft_ms<=70", False),
        ("mean_ttft_ms<=70", False),
        ("ttft_ms<=70", False),
        ("p95_ttft_ms<=250,p95_itl_ms<=7", False),
        ("p95_ttft_ms<=250,p95_itl_ms<=15", True),
        # Over the bound, but not by more than the simulation may be off.
        ("p50_ttft_ms<=90", True),
    ],
)
def test_a_latency_is_out_of_reach_when_half_of_all_requests_are_over_the_bound_for_certain(
    sla: str, is_feasible: bool
) -> None:
    assert is_feasible_when_idle(Sla.parse(sla), ALONE) is is_feasible


def test_long_requests_of_the_schedule_say_nothing_about_traffic_that_may_have_none() -> None:
    assert is_feasible_when_idle(Sla.parse("p95_ttft_ms<=150"), ALONE) is True
    assert is_feasible_when_idle(Sla.parse("ttft_ms<=150,attainment>=0.95"), ALONE) is True


def test_a_share_of_requests_is_out_of_reach_when_too_few_are_fast_enough_alone() -> None:
    assert is_feasible_when_idle(Sla.parse("ttft_ms<=60,attainment>=0.95"), ALONE) is False
    assert is_feasible_when_idle(Sla.parse("ttft_ms<=60,attainment>=0.5"), ALONE) is False
    assert is_feasible_when_idle(Sla.parse("ttft_ms<=60,attainment>=0.4"), ALONE) is None


@pytest.mark.parametrize(
    "sla", ["throughput_tokens_per_s>=1e9", "p95_e2e_ms<=1", "itl_ms<=1,attainment>=0.99"]
)
def test_what_nothing_is_known_about_is_not_judged(sla: str) -> None:
    assert is_feasible_when_idle(Sla.parse(sla), ALONE) is None


def test_without_an_sla_there_is_nothing_to_be_infeasible() -> None:
    assert is_feasible_when_idle(None, ALONE) is None
