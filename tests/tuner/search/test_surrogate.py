from __future__ import annotations

import json
import time

import numpy as np
import pytest

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.points import Estimate, OperatingPoint
from tests.tuner.worlds import LinearTimer, closed_loop, open_loop
from tuner.search.surrogate import Example, Load, Surrogate, features, fit_surrogate

LOAD = Load.of(open_loop(requests=50, gap_s=0.1))


def settings(tp: int, seqs: int) -> Settings:
    return Settings(plan=ParallelPlan(tp=tp), caps=Caps(max_num_seqs=seqs))


def examples(count: int, seed: int = 0) -> list[Example]:
    """Points on a smooth landscape with 5 % noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tp, seqs = int(rng.choice([1, 2, 4, 8])), int(rng.choice([8, 16, 32, 64, 128]))
        value = 1000.0 / tp + 2.0 * seqs
        metrics = {"p95_ttft_ms": Estimate.exact(value * float(np.exp(rng.normal() * 0.05)))}
        point = OperatingPoint(
            settings=settings(tp, seqs), fidelity=Fidelity.SIMULATED, metrics=metrics
        )
        row = features(settings(tp, seqs), LOAD, LinearTimer(fixed_s=0.01 / tp))
        found.append(Example(point=point, row=row))
    return found


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    fitted = fit_surrogate(examples(200))
    assert fitted is not None
    return fitted


def test_it_predicts_operating_points_with_intervals_that_hold(surrogate: Surrogate) -> None:
    held = 0
    fresh = examples(200, seed=1)
    for example in fresh:
        point = example.point
        timer = LinearTimer(fixed_s=0.01 / point.settings.plan.tp)
        guess = surrogate.predict(point.settings, LOAD, timer)
        assert guess.fidelity is Fidelity.PREDICTED
        truth, estimate = point.metrics["p95_ttft_ms"].value, guess.metrics["p95_ttft_ms"]
        held += estimate.low <= truth <= estimate.high
    assert held / len(fresh) > 0.8


def test_it_answers_in_milliseconds(surrogate: Surrogate) -> None:
    # A bound so wide that only a wrong order of size breaks it.
    started_s = time.perf_counter()
    for _ in range(20):
        surrogate.predict(settings(2, 16), LOAD, LinearTimer())
    assert (time.perf_counter() - started_s) / 20 < 0.1


def test_it_survives_json(surrogate: Surrogate) -> None:
    again = Surrogate.from_json(json.loads(json.dumps(surrogate.to_json())))
    for tp in (1, 4):
        assert again.predict(settings(tp, 8), LOAD, LinearTimer()) == surrogate.predict(
            settings(tp, 8), LOAD, LinearTimer()
        )


def test_too_few_points_make_no_surrogate() -> None:
    assert fit_surrogate(examples(10)) is None


def test_a_closed_loop_is_described_by_its_concurrency() -> None:
    load = Load.of(closed_loop(requests=20, concurrency=7))
    assert (load.rate_rps, load.is_closed) == (7.0, True)
