"""Fresh draws: the gain over trial 0 with its interval, and when the winner loses its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.objective import Objective
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tuner.search.fresh import GOODPUT_PER_DEVICE, Drawn, FreshDraws, Role
from tuner.search.promotion import is_beaten

SLA = Sla.parse("p95_ttft_ms<=500")
DRAWS = (300.0, 420.0, 250.0)  # as unlike as bursts are
SMALL = Settings(plan=ParallelPlan(tp=1))
OTHER = replace(SMALL, caps=Caps(max_num_seqs=32))
LARGE = Settings(plan=ParallelPlan(tp=4))


def point(
    settings: Settings, ttft_ms: float, *, within: float = 0.0, goodput: float = 8.0
) -> OperatingPoint:
    metrics = {
        "p95_ttft_ms": Estimate(
            value=ttft_ms, low=ttft_ms * (1 - within), high=ttft_ms * (1 + within)
        ),
        "goodput_rps": Estimate.exact(goodput),
    }
    return OperatingPoint(settings=settings, fidelity=Fidelity.PROBED, metrics=metrics)


def drawn(settings: Settings, ttfts: tuple[float, ...]) -> Drawn:
    return Drawn(
        settings=settings,
        chosen_by=point(settings, 300.0, within=0.1),
        points={draw: point(settings, ttft) for draw, ttft in enumerate(ttfts)},
    )


def fresh(**runs: Drawn) -> FreshDraws:
    return FreshDraws(
        sla=SLA,
        objective=Objective.DEVICES,
        fidelity=Fidelity.PROBED,
        num_draws=3,
        num_requests=64,
        runs={Role(role): own for role, own in runs.items()},
    )


def test_the_gain_over_trial_0_is_paired_and_has_an_interval() -> None:
    found = fresh(
        winner=drawn(SMALL, tuple(0.7 * ms for ms in DRAWS)), baseline=drawn(LARGE, DRAWS)
    )
    change = found.gain["p95_ttft_ms"]
    assert change.share == pytest.approx(-0.3)
    assert change.is_beyond_noise, "draws differ by much more than the two on the same draw do"
    assert found.gain[GOODPUT_PER_DEVICE].share == pytest.approx(3.0)
    assert found.headline is not None
    assert "p95_ttft_ms -30.0 %" in found.headline
    assert "against trial 0 (tp=4" in found.headline


def test_without_two_draws_of_both_there_is_no_gain_to_tell() -> None:
    one = fresh(winner=drawn(SMALL, DRAWS), baseline=drawn(LARGE, DRAWS[:1]))
    assert one.gain == {}
    assert one.headline is None


def test_a_winner_that_misses_most_fresh_draws_loses_its_place() -> None:
    assert fresh(winner=drawn(SMALL, DRAWS)).why_demote is None
    missed = fresh(winner=drawn(SMALL, (510.0, 620.0, 300.0)))
    assert missed.why_demote == "it met the SLA in 1 of 3 fresh draws"
    assert missed.winner_overall.metrics["p95_ttft_ms"].value == 510.0


def test_a_runner_up_that_is_better_beyond_noise_takes_the_place_and_no_other_does() -> None:
    winner = drawn(SMALL, DRAWS)
    better = drawn(OTHER, tuple(0.9 * ms for ms in DRAWS))
    found = fresh(winner=winner, runner_up=better)
    assert found.why_demote is not None
    assert "was better on 3 fresh draws of both" in found.why_demote
    mixed = drawn(OTHER, (200.0, 480.0, 260.0))
    assert fresh(winner=winner, runner_up=mixed).why_demote is None
    larger = drawn(LARGE, tuple(0.5 * ms for ms in DRAWS))
    assert fresh(winner=winner, runner_up=larger).why_demote is None


def test_an_interval_that_overlaps_the_best_goes_on_and_one_that_does_not_stays() -> None:
    best = point(SMALL, 300.0, within=0.1)
    by = Objective.DEVICES
    assert not is_beaten(point(OTHER, 340.0, within=0.1), best, SLA, by)
    assert is_beaten(point(OTHER, 400.0, within=0.1), best, SLA, by)
    assert is_beaten(point(LARGE, 10.0, within=0.1), best, SLA, by), "more devices cannot win"
    unsure = point(SMALL, 480.0, within=0.1)  # which may miss the SLA
    assert not is_beaten(point(LARGE, 10.0, within=0.1), unsure, SLA, by)
    unknown = OperatingPoint(settings=OTHER, fidelity=Fidelity.SIMULATED, metrics={})
    assert not is_beaten(unknown, best, SLA, by)
    assert is_beaten(replace(unknown, settings=LARGE), best, SLA, by)
    assert not is_beaten(point(LARGE, 400.0), best, SLA, Objective.PARETO)
