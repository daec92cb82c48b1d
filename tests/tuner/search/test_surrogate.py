from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.points import Estimate, OperatingPoint
from tests.tuner.worlds import LinearTimer, closed_loop, open_loop
from tuner.search.queueing import estimate_queueing
from tuner.search.surrogate import Example, Load, Surrogate, features, fit_surrogate

LOAD = Load.of(open_loop(requests=50, gap_s=0.1))
KEY = "p95_ttft_ms"


def settings(tp: int, seqs: int, dp: int = 1) -> Settings:
    return Settings(plan=ParallelPlan(dp=dp, tp=tp), caps=Caps(max_num_seqs=seqs))


def timer_of(tp: int) -> LinearTimer:
    return LinearTimer(fixed_s=0.01 / tp)


def examples(count: int, factor: Callable[[Settings], float], seed: int = 0) -> list[Example]:
    """Points that are ``factor`` times what physics says, with 5 % noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        degrees = [int(rng.choice([1, 2, 4, 8])) for _ in range(2)]
        tried = settings(degrees[0], int(rng.choice([8, 16, 32, 64, 128])), dp=degrees[1])
        known = features(tried, LOAD, timer_of(degrees[0]))
        value = known.physical[KEY] * factor(tried) * math.exp(rng.normal() * 0.05)
        metrics = {KEY: Estimate.exact(value)}
        point = OperatingPoint(settings=tried, fidelity=Fidelity.SIMULATED, metrics=metrics)
        found.append(Example(point=point, features=known))
    return found


def by_seats(tried: Settings) -> float:
    """What physics does not know: few seats cost half as much again."""
    return 1.5 if tried.caps.max_num_seqs <= 32 else 1.0


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    fitted = fit_surrogate(examples(200, by_seats))
    assert fitted is not None
    return fitted


def test_it_predicts_operating_points_with_intervals_that_hold(surrogate: Surrogate) -> None:
    held = 0
    fresh = examples(200, by_seats, seed=1)
    for example in fresh:
        point = example.point
        guess = surrogate.predict(point.settings, LOAD, timer_of(point.settings.plan.tp))
        assert guess.fidelity is Fidelity.PREDICTED
        truth, estimate = point.metrics[KEY].value, guess.metrics[KEY]
        held += estimate.low <= truth <= estimate.high
    assert held / len(fresh) > 0.8


def test_boosting_is_on_where_it_learns_what_physics_misses_and_off_where_it_does_not(
    surrogate: Surrogate,
) -> None:
    learned = surrogate.models[KEY]
    assert learned.trees is not None
    assert learned.boosted_error < learned.physical_error
    assert "boosting is on" in surrogate.error_report()[0]
    noise = fit_surrogate(examples(60, lambda _: 2.0))
    assert noise is not None
    assert noise.models[KEY].trees is None
    assert noise.models[KEY].log_factor == pytest.approx(math.log(2.0), abs=0.05)
    assert "boosting is off" in noise.error_report()[0]


def test_plans_that_were_all_seen_prove_nothing_about_others() -> None:
    every = [e for e in examples(400, by_seats) if str(e.point.settings.plan) == "dp=2,tp=2"]
    fitted = fit_surrogate(every[:24])
    assert fitted is not None
    assert fitted.models[KEY].trees is None


def test_it_answers_in_milliseconds(surrogate: Surrogate) -> None:
    # A bound so wide that only a wrong order of size breaks it.
    started_s = time.thread_time()
    for _ in range(20):
        surrogate.predict(settings(2, 16), LOAD, LinearTimer())
    assert (time.thread_time() - started_s) / 20 < 0.1


def test_it_survives_json(surrogate: Surrogate) -> None:
    again = Surrogate.from_json(json.loads(json.dumps(surrogate.to_json())))
    for tp in (1, 4):
        assert again.predict(settings(tp, 8), LOAD, LinearTimer()) == surrogate.predict(
            settings(tp, 8), LOAD, LinearTimer()
        )


def test_too_few_points_make_no_surrogate() -> None:
    assert fit_surrogate(examples(10, by_seats)) is None


def test_a_closed_loop_is_described_by_its_concurrency() -> None:
    assert Load.of(closed_loop(requests=20, concurrency=7)).rate_rps == 7.0


def test_physics_of_a_request_alone_is_its_own_steps() -> None:
    alone = open_loop(requests=20, gap_s=60.0)
    found = estimate_queueing(settings(1, 16), alone, LinearTimer())
    # 10 ms + 0.1 ms a token of about 114, and 1 ms of the host.
    assert found.metrics["p50_ttft_ms"] == pytest.approx(22.4, rel=0.1)
    assert found.metrics["p50_tpot_ms"] == pytest.approx(11.1, rel=0.1)
    assert found.waiting == pytest.approx(0.0, abs=0.01)


def test_physics_knows_a_queue_that_grows_and_that_replicas_shorten_it() -> None:
    heavy = open_loop(requests=200, gap_s=0.01)
    one, four = (estimate_queueing(settings(1, 16, dp=n), heavy, LinearTimer()) for n in (1, 4))
    assert one.waiting > 10
    assert one.metrics["p95_ttft_ms"] > 5 * four.metrics["p95_ttft_ms"]
    longer = estimate_queueing(settings(1, 16), open_loop(requests=400, gap_s=0.01), LinearTimer())
    assert longer.metrics["p95_ttft_ms"] > 1.5 * one.metrics["p95_ttft_ms"]


def test_physics_of_few_seats_makes_requests_wait_for_one() -> None:
    long = open_loop(requests=100, gap_s=0.05, output_tokens=200)
    few, many = (estimate_queueing(settings(1, n), long, LinearTimer()) for n in (4, 64))
    assert few.metrics["p95_ttft_ms"] > 3 * many.metrics["p95_ttft_ms"]
    assert few.metrics["p95_tpot_ms"] < many.metrics["p95_tpot_ms"]
