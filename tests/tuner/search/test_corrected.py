"""What arithmetic says of combinations, and what it learns from those that were tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from policies.report import flat_metrics
from policies.sla import Sla
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, open_loop
from tuner.search.corrected import Corrected
from tuner.search.estimate import Estimator
from tuner.search.grid import Grid
from tuner.search.surrogate import Load
from tuner.simulation.simulate import Ranks, SimulatedEngine, ranks_of_one, simulate
from tuner.spec.space import build_space
from tuner.workload.workload import Arrival, Workload

SLA = Sla.parse("p95_ttft_ms<=500,p95_tpot_ms<=50")
LIGHT = open_loop(requests=40, gap_s=0.5)
HEAVY = open_loop(requests=40, gap_s=0.02)
TIMER = LinearTimer()


def estimate(settings: Settings, load: Workload, sla: Sla = SLA) -> dict[str, float]:
    estimator = Estimator(load=Load.of(load), timer=lambda _: TIMER, sla=sla)
    return {key: e.value for key, e in estimator.estimate(settings).metrics.items()}


def _ttft_ms(settings: Settings, gap_s: float) -> float:
    return estimate(settings, open_loop(requests=40, gap_s=gap_s))["p95_ttft_ms"]


def with_caps(seqs: int, tokens: int) -> Settings:
    caps = replace(Settings().caps, max_num_seqs=seqs, max_num_batched_tokens=tokens)
    return replace(Settings(), caps=caps)


def test_first_tokens_wait_longer_the_more_is_asked() -> None:
    waits = [_ttft_ms(Settings(), gap_s) for gap_s in (1.0, 0.1, 0.03, 0.01)]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


@pytest.mark.parametrize("load", [LIGHT, HEAVY, open_loop(requests=60, gap_s=0.001)])
@pytest.mark.parametrize("seqs", [2, 8, 64])
@pytest.mark.parametrize("tokens", [64, 512])
def test_estimates_are_near_what_simulation_says(load: Workload, seqs: int, tokens: int) -> None:
    settings = with_caps(seqs, tokens)
    said = estimate(settings, load)
    ranks = ranks_of_one(settings.plan, Ranks(timer=TIMER, num_kv_blocks=4000))
    engine = SimulatedEngine(model=SMALL, ranks_of=ranks)
    simulated = flat_metrics(simulate(engine, settings, load, seed=0).measurement, SLA)
    for key in ("p95_ttft_ms", "p95_tpot_ms", "throughput_tokens_per_s"):
        assert said[key] == pytest.approx(simulated[key], rel=0.25), key


def test_rows_that_bind_only_in_a_burst_cost_little_over_a_run_that_ends() -> None:
    """Twelve at once, then nothing: the queue of four rows is short, however hard they come."""
    burst = open_loop(requests=24, gap_s=0.0)
    arrivals = tuple(
        Arrival(
            arrival_s=30.0 * (number // 12),
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
        )
        for number, one in enumerate(burst.arrivals)
    )
    apart = replace(burst, arrivals=arrivals)
    four, all_at_once = (estimate(with_caps(4, 512), w)["p95_ttft_ms"] for w in (apart, burst))
    assert four < 0.6 * all_at_once


def test_caps_that_never_bind_share_an_estimate() -> None:
    assert estimate(with_caps(64, 2048), LIGHT) == estimate(with_caps(256, 8192), LIGHT)


def test_gaps_between_tokens_know_of_prompts_beside_them() -> None:
    sla = Sla.parse("p99_itl_ms<=50,p50_itl_ms<=50")
    found = estimate(with_caps(64, 2048), HEAVY, sla)
    assert found["p99_itl_ms"] > found["p50_itl_ms"]


def test_closed_loops_wait_where_clients_have_no_row() -> None:
    load = closed_loop(requests=40, concurrency=32)

    def wait_ms(seqs: int) -> float:
        return estimate(with_caps(seqs, 8192), load)["p95_ttft_ms"]

    assert wait_ms(4) > 2 * wait_ms(32)


@pytest.fixture(scope="module")
def corrected() -> Corrected:
    space = build_space(SMALL, 4, check_memory=lambda plan: None, max_model_len=4096)
    return Corrected(
        grid=Grid(replace(space, num_seqs=(4, 64), batched_tokens=(128, 2048))),
        sla=SLA,
        load=Load.of(HEAVY),
        timer=lambda plan: LinearTimer(per_token_s=0.0001 / plan.stage_size),
    )


def test_what_was_found_moves_the_ranking_of_combinations_like_it(corrected: Corrected) -> None:
    rows = list(range(len(corrected.grid)))
    best = corrected.ranked(rows, [])[0]
    guess = corrected.estimate(best)
    slow = {key: Estimate.exact(20 * e.value) for key, e in guess.metrics.items()}
    found = OperatingPoint(settings=guess.settings, fidelity=Fidelity.SIMULATED, metrics=slow)
    again = corrected.ranked(rows, [found])
    assert again == corrected.ranked(rows, [found])
    assert sorted(again) == rows
    assert again[0] != best
    assert corrected.estimate(again[0]).metrics != guess.metrics
