"""Which knobs mattered among points."""

from __future__ import annotations

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tuner.search.importance import importances

SLA = Sla.parse("p95_ttft_ms<=500")


def _point(ttft_ms: float, **degrees: int) -> OperatingPoint:
    return OperatingPoint(
        settings=Settings(plan=ParallelPlan(**degrees)),
        fidelity=Fidelity.SIMULATED,
        metrics={"p95_ttft_ms": Estimate.exact(ttft_ms)},
    )


def test_the_knob_that_decides_is_the_most_important_and_others_explain_little() -> None:
    points = [_point(1000 / tp, tp=tp, sp=sp) for tp in (1, 2, 4) for sp in (1, 2)]
    found = {one.knob: one for one in importances(points, SLA)}
    assert list(found) == ["tp", "sp"]
    assert found["tp"].share > 0.9
    assert found["sp"].share < 0.1
    assert [level.value for level in found["tp"].levels] == [1, 2, 4]
    assert found["tp"].levels[0].latency_over_bound > found["tp"].levels[-1].latency_over_bound


def test_without_differences_nothing_is_important() -> None:
    assert importances([], SLA) == ()
    alike = [_point(100.0, tp=tp) for tp in (1, 2)]
    assert [one.share for one in importances(alike, SLA)] == [0.0]
