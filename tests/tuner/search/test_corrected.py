"""What arithmetic says of combinations, and what it learns from those that were tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, open_loop
from tuner.search.corrected import Corrected
from tuner.search.estimate import estimate, steady_state
from tuner.search.grid import Grid
from tuner.search.surrogate import Load
from tuner.spec.space import build_space

SLA = Sla.parse("p95_ttft_ms<=500,p95_tpot_ms<=50")
LIGHT = open_loop(requests=40, gap_s=0.5)
HEAVY = open_loop(requests=40, gap_s=0.02)
TIMER = LinearTimer()


def _ttft_ms(settings: Settings, gap_s: float) -> float:
    load = open_loop(requests=40, gap_s=gap_s)
    point = estimate(settings, Load.of(load), TIMER, SLA, span_s=load.span_s)
    return point.metrics["p95_ttft_ms"].value


def test_first_tokens_wait_longer_the_more_is_asked() -> None:
    waits = [_ttft_ms(Settings(), gap_s) for gap_s in (1.0, 0.1, 0.03, 0.01)]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_an_overload_is_told_from_a_load_that_fits() -> None:
    light = steady_state(Settings(), Load.of(LIGHT), TIMER)
    heavy = steady_state(Settings(), Load.of(open_loop(requests=40, gap_s=0.001)), TIMER)
    assert light.utilisation < 1 < heavy.utilisation
    assert light.step_s < heavy.step_s


def test_closed_loops_wait_where_clients_have_no_row() -> None:
    load = closed_loop(requests=40, concurrency=32)

    def wait_ms(seqs: int) -> float:
        settings = replace(Settings(), caps=replace(Settings().caps, max_num_seqs=seqs))
        point = estimate(settings, Load.of(load), TIMER, SLA, span_s=0.0)
        return point.metrics["p95_ttft_ms"].value

    assert wait_ms(4) > 2 * wait_ms(32)


@pytest.fixture(scope="module")
def corrected() -> Corrected:
    space = build_space(SMALL, 4, check_memory=lambda plan: None, max_model_len=4096)
    return Corrected(
        grid=Grid(replace(space, num_seqs=(4, 64), batched_tokens=(128, 2048))),
        sla=SLA,
        load=Load.of(HEAVY),
        span_s=HEAVY.span_s,
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
