"""The front of points that nothing beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.importance import importances
from policies.pareto import NUM_DEVICES, aims_of, pareto_front
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla

SLA = Sla.parse("p95_ttft_ms<=500,throughput_tokens_per_s>=100")


def _point(tp: int, ttft_ms: float, throughput: float, **changes: int) -> OperatingPoint:
    metrics = {"p95_ttft_ms": ttft_ms, "throughput_tokens_per_s": throughput}
    return OperatingPoint(
        settings=Settings(plan=ParallelPlan(tp=tp, **changes)),
        fidelity=Fidelity.SIMULATED,
        metrics={key: Estimate.exact(value) for key, value in metrics.items()},
    )


def test_the_aims_are_devices_and_what_the_sla_bounds() -> None:
    told = [aim.to_json() for aim in aims_of(SLA)]
    assert told[0] == {"key": NUM_DEVICES, "direction": "less"}
    assert told[1:] == [
        {"key": "p95_ttft_ms", "direction": "less"},
        {"key": "throughput_tokens_per_s", "direction": "more"},
    ]


def test_a_beaten_point_is_not_on_the_front_and_one_without_a_number_is_none() -> None:
    cheap, fast, beaten = _point(1, 400, 100), _point(2, 200, 150), _point(2, 300, 120)
    failed, silent = (
        _point(1, float("inf"), 0),
        OperatingPoint(settings=Settings(), fidelity=Fidelity.SIMULATED, metrics={}),
    )
    assert pareto_front([beaten, fast, failed, cheap, silent], aims_of(SLA)) == (cheap, fast)


numbers = st.sampled_from([1.0, 2.0, 3.0, 4.0])


@given(st.lists(st.tuples(st.integers(1, 4), numbers, numbers), max_size=12))
def test_every_point_is_on_the_front_or_is_beaten_by_one_of_it(
    found: list[tuple[int, float, float]],
) -> None:
    points = [_point(2 ** (tp - 1), ttft, rate) for tp, ttft, rate in found]
    aims = aims_of(SLA)

    def beats(one: OperatingPoint, other: OperatingPoint) -> bool:
        a, b = ([aim.cost(p) or 0.0 for aim in aims] for p in (one, other))
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    front = pareto_front(points, aims)
    for point in points:
        assert any(point is one for one in front) != any(beats(one, point) for one in front)


def test_the_knob_that_decides_is_the_most_important_and_others_explain_nothing() -> None:
    points = [_point(tp, 1000 / tp, 100, sp=sp) for tp in (1, 2, 4) for sp in (1, 2)]
    found = {one.knob: one for one in importances(points, SLA)}
    assert list(found) == ["tp", "sp"]
    assert found["tp"].share > 0.9
    assert found["sp"].share == 0
    assert [level.value for level in found["tp"].levels] == [1, 2, 4]
    assert found["tp"].levels[0].latency_over_bound > found["tp"].levels[-1].latency_over_bound
    assert importances([], SLA) == ()
