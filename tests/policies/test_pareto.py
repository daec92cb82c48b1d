"""The front of points that nothing beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.pareto import NUM_DEVICES, aims_of, hypervolume, pareto_front
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


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_the_hypervolume_is_the_number_of_unit_squares_that_some_point_beats(
    found: list[tuple[int, int]],
) -> None:
    beaten = {
        (x, y) for a, b in found for x in range(a, 5) for y in range(b, 5)
    }  # below the reference (5, 5)
    assert hypervolume([(float(a), float(b)) for a, b in found], (5.0, 5.0)) == len(beaten)
