"""What a live run proves, alone and together with its simulation."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from policies.select import ChoiceReason, select
from policies.sla import Sla
from policies.verdict import MIN_CHANCE, is_dependable, meets_in_run, verdict
from tuner.search.evidence import measured_estimates, measured_point, with_model

SLA = Sla.parse("p95_ttft_ms<=500")
# The README's tune: measured 39.99 (31.5..50.8) against 40, which was recommended.
HAIR = Sla.parse("p95_tpot_ms<=40")


def run_of(ttft_ms: list[float]) -> Measurement:
    """Requests with these times to the first of two tokens."""
    timings = tuple(
        RequestTiming(
            scheduled_s=float(n),
            sent_s=float(n),
            token_s=(n + ms / 1000, n + ms / 1000 + 0.02),
            prompt_tokens=8,
            outcome=Outcome.COMPLETED,
        )
        for n, ms in enumerate(ttft_ms)
    )
    return Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of([0.0])
    )


def simulated(value: float, *, within: float = 0.1, key: str = "p95_ttft_ms") -> OperatingPoint:
    estimate = Estimate(value=value, low=value * (1 - within), high=value * (1 + within))
    return OperatingPoint(settings=Settings(), fidelity=Fidelity.SIMULATED, metrics={key: estimate})


def test_three_fast_requests_do_not_prove_a_p95() -> None:
    few, some, many = (
        measured_estimates(run_of([110.0] * n), SLA, seed=0)["p95_ttft_ms"] for n in (3, 30, 1000)
    )
    constraint = SLA.constraints[0]
    assert few.probability(constraint) < 0.5
    assert few.probability(constraint) < some.probability(constraint) < many.probability(constraint)
    assert many.probability(constraint) > 0.99


def test_the_slowest_request_is_not_the_end_of_what_may_come() -> None:
    spread = [100.0 + 10 * n for n in range(30)]
    p95 = measured_estimates(run_of(spread), SLA, seed=0)["p95_ttft_ms"]
    assert p95.high > max(spread)


def test_a_value_met_by_a_hair_is_a_coin_flip_and_not_dependable() -> None:
    hair = OperatingPoint(
        settings=Settings(),
        fidelity=Fidelity.MEASURED,
        metrics={"p95_tpot_ms": Estimate(value=39.99, low=31.5, high=50.8)},
    )
    assert meets_in_run(hair, HAIR)
    assert not is_dependable(hair, HAIR)
    assert verdict(hair, HAIR) == "too close: P(SLA met) 0.50 < 0.8"
    selection = select([hair], HAIR)
    assert selection.best is None
    assert selection.reason is ChoiceReason.SLA_UNLIKELY
    assert selection.closest is hair


def test_a_model_that_agrees_makes_few_requests_count_for_more() -> None:
    alone = measured_estimates(run_of([110.0] * 8), SLA, seed=0)["p95_ttft_ms"]
    # Two runs of equal requests have no spread; the model speaks where there is some.
    spread = run_of([100.0 + 5 * n for n in range(8)])
    agrees = measured_point(Settings(), spread, SLA, simulated=simulated(130.0), seed=0)
    assert agrees.probability(SLA) > alone.probability(SLA.constraints[0])


def test_a_model_that_is_contradicted_counts_for_little() -> None:
    measured = Estimate(value=600, low=500, high=720)
    rosy = simulated(100.0, within=0.01).metrics["p95_ttft_ms"]
    belief = with_model("p95_ttft_ms", measured, rosy, 64)
    assert belief.value > 540
    assert belief.probability(SLA.constraints[0]) < 0.3


@given(
    value=st.floats(10, 1000),
    spread=st.floats(0.01, 0.5),
    model=st.floats(10, 1000),
    error=st.floats(0, 0.5),
    count=st.integers(1, 2000),
)
def test_a_belief_lies_between_run_and_model_nearer_to_the_run(
    value: float, spread: float, model: float, error: float, count: int
) -> None:
    measured = Estimate(value=value, low=value * (1 - spread), high=value * (1 + spread))
    said = Estimate(value=model, low=model * (1 - error), high=model * (1 + error))
    belief = with_model("p95_ttft_ms", measured, said, count)
    assert min(value, model) * 0.999 <= belief.value <= max(value, model) * 1.001
    to_run, to_model = (abs(math.log(belief.value / other)) for other in (value, model))
    assert to_run <= to_model + 1e-9
    # Never narrower than the run by more than doubling its requests would make it.
    assert belief.high / belief.low >= (measured.high / measured.low) ** 0.7


def test_attainment_is_judged_by_its_share_of_requests() -> None:
    sla = Sla.parse("ttft:500,attainment>=0.99")
    agrees = OperatingPoint(
        settings=Settings(), fidelity=Fidelity.SIMULATED, metrics={"attainment": Estimate.exact(1)}
    )
    chances = [
        measured_point(Settings(), run_of([110.0] * n), sla, simulated=agrees, seed=0).probability(
            sla
        )
        for n in (10, 64, 500)
    ]
    assert chances[0] < MIN_CHANCE < chances[1] < chances[2]
