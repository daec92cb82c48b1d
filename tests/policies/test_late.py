"""How many requests may be late before a run is known to miss its SLA."""

from __future__ import annotations

from policies.late import late_limits
from policies.sla import Sla


def test_so_many_may_be_late_as_leave_the_percentile_alone() -> None:
    (limit,) = late_limits(Sla.parse("p95_ttft_ms<=100"), 101)
    assert limit.num_allowed == 5
    (strict,) = late_limits(Sla.parse("p50_ttft_ms<=100,attainment>=0.99"), 200)
    assert strict.num_allowed == 2
    assert late_limits(Sla.parse("mean_ttft_ms<=100,throughput_tokens_per_s>=5"), 100) == ()
