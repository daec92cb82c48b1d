from __future__ import annotations

from dataclasses import replace

import numpy as np

from tuner.workload.parse import parse_workload
from tuner.workload.redraw import redraw
from tuner.workload.slices import head
from tuner.workload.workload import Workload, gap_cv

POISSON = "poisson:rate=10,input=500,output=20,requests=400"


def rates(draws: list[Workload]) -> list[float]:
    return [draw.rate_rps or 0.0 for draw in draws]


def test_a_process_is_drawn_again_and_draw_0_is_what_was_asked() -> None:
    asked = parse_workload(POISSON, seed=3)
    assert redraw(asked, 0) is asked
    again = redraw(asked, 1)
    assert again.arrivals != asked.arrivals
    assert again == redraw(asked, 1)
    assert len(again) == len(asked)


def test_the_load_of_a_draw_may_differ_a_little() -> None:
    asked = parse_workload(POISSON, seed=3)
    heavier, plain = redraw(asked, 2, load=1.05), redraw(asked, 2)
    assert np.isclose(rates([heavier])[0], 1.05 * rates([plain])[0])


def test_what_was_cut_is_resampled_within_its_stretches() -> None:
    whole = parse_workload("gamma:rate=10,cv=2,input=500,output=20,input_cv=1,requests=800", seed=1)
    cut = head(whole, 700)
    draws = [redraw(cut, seed) for seed in range(1, 9)]
    assert len({draw.arrivals for draw in draws}) == len(draws)
    known = {a.input_tokens for a in cut.arrivals}
    assert all(a.input_tokens in known for draw in draws for a in draw.arrivals)
    assert np.isclose(np.mean(rates(draws)), cut.rate_rps or 0.0, rtol=0.1)
    assert np.isclose(np.mean([gap_cv(d.arrival_s) or 0 for d in draws]), 2.0, rtol=0.25)
    assert np.std([len(draw) for draw in draws]) > 0


def test_draws_of_clumps_with_long_pauses_bring_as_many_requests_as_came() -> None:
    clumps = head(
        parse_workload("gamma:rate=10,cv=6,input=500,output=20,requests=1000", seed=2), 960
    )
    counts = [len(redraw(clumps, seed)) for seed in range(1, 13)]
    assert np.isclose(np.mean(counts), len(clumps), rtol=0.05)
    assert max(counts) < 1.2 * len(clumps)


def test_requests_that_share_beginnings_are_not_drawn_twice() -> None:
    asked = head(parse_workload(POISSON, seed=3), 300)
    shared = replace(
        asked,
        arrivals=tuple(replace(a, prefix_id=f"p{i % 7}") for i, a in enumerate(asked.arrivals)),
    )
    drawn = redraw(shared, 1)
    assert sorted(a.prefix_id or "" for a in drawn.arrivals) == sorted(
        a.prefix_id or "" for a in shared.arrivals
    )


def test_a_closed_loop_keeps_its_clients() -> None:
    asked = parse_workload(
        "closed:concurrency=8,input=500,output=20,input_cv=1,requests=80", seed=0
    )
    drawn = redraw(asked, 1, load=1.2)
    assert drawn.closed == asked.closed
    assert drawn.arrivals != asked.arrivals
