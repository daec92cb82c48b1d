from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.objective import Objective
from policies.points import Estimate, OperatingPoint, estimates_to_json
from policies.sla import Sla
from tests.tuner.worlds import SMALL
from tuner.search.grid import Grid
from tuner.search.suggest import constraint_values, suggest
from tuner.search.trials import TrialRecord, TrialState
from tuner.spec.space import ORDERS, STEP_MS, Space, build_space

SLA = Sla.parse("p95_ttft_ms<=500,p95_tpot_ms<=50")


@pytest.fixture(scope="module")
def space() -> Space:
    return build_space(SMALL, 8, check_memory=lambda plan: None, max_model_len=4096)


def record(number: int, tried: Settings, ttft_ms: float) -> TrialRecord:
    metrics = {
        "p95_ttft_ms": Estimate(value=ttft_ms, low=0.9 * ttft_ms, high=1.1 * ttft_ms),
        "p95_tpot_ms": Estimate.exact(20.0),
    }
    return TrialRecord(
        number=number,
        settings=tried,
        fidelity=Fidelity.SIMULATED,
        state=TrialState.COMPLETE,
        metrics=estimates_to_json(metrics),
        is_feasible=ttft_ms <= 500,
        reason="",
        seconds=0.0,
    )


def play(space: Space, count: int, start: list[TrialRecord] | None = None) -> list[TrialRecord]:
    """A search on a made-up landscape: the more tensor ranks, the faster."""
    trials, grid = list(start or []), Grid(space)
    while len(trials) < count:
        one = suggest(grid, SLA, trials, seed=5, number=len(trials), count=1)[0]
        trials.append(record(len(trials), one, 4000.0 / one.plan.stage_size))
    return trials


def test_a_resumed_search_goes_on_as_if_undisturbed(space: Space) -> None:
    undisturbed = play(space, 14)
    stored = [TrialRecord.from_json(t.to_json()) for t in play(space, 9)]
    assert play(space, 14, stored) == undisturbed


def test_a_ladder_is_suggested_with_and_without_its_rungs(space: Space) -> None:
    plan = ParallelPlan(sp=8, shift=True)
    ladder = ((Mode("4x2"), 1500), (Mode("2x4"), 700))
    climbing = replace(space, plans=(plan,), ladders={plan: ladder})
    found = [trial.settings for trial in play(climbing, 12)]
    assert {bool(one.rung_thresholds) for one in found} == {False, True}
    for one in found:
        assert all(most > one.threshold_tokens for _, most in one.rung_thresholds)


def test_suggestions_depend_on_seed_and_number(space: Space) -> None:
    def first(seed: int, number: int) -> list[Settings]:
        return suggest(Grid(space), SLA, [], seed=seed, number=number, count=3)

    assert first(0, 1) == first(0, 1)
    assert first(0, 1) != first(0, 2)
    assert first(0, 1) != first(1, 1)


def test_later_trials_do_not_change_an_earlier_suggestion(space: Space) -> None:
    trials = play(space, 10)
    again = suggest(Grid(space), SLA, trials, seed=5, number=4, count=1)[0]
    assert again == trials[4].settings


def test_the_search_learns_which_plans_meet_the_sla(space: Space) -> None:
    trials = play(space, 40)
    late = [t.settings.plan.stage_size for t in trials[25:]]
    every = [plan.stage_size for plan in space.plans]
    assert sum(late) / len(late) > sum(every) / len(every)


def test_failed_trials_and_values_outside_the_grid_do_no_harm(space: Space) -> None:
    odd = record(0, Settings(plan=ParallelPlan(sp=2, shift=True), threshold_tokens=77), 100.0)
    failed = TrialRecord.from_json(
        record(1, Settings(plan=ParallelPlan()), 1.0).to_json() | {"state": "failed", "metrics": {}}
    )
    assert failed.point is None
    assert suggest(Grid(space), SLA, [odd, failed], seed=0, number=2, count=1)


def test_constraints_are_at_most_zero_just_where_the_sla_is_met() -> None:
    point = OperatingPoint(
        settings=Settings(),
        fidelity=Fidelity.SIMULATED,
        metrics={"p95_ttft_ms": Estimate.exact(250.0)},
    )
    values = constraint_values(point, SLA)
    assert values["p95_ttft_ms"] == pytest.approx(-0.5)
    assert values["p95_tpot_ms"] == 10.0  # not observed: it never passes


def test_a_record_survives_json() -> None:
    trial = record(3, Settings(plan=ParallelPlan(sp=2, shift=True)), float("inf"))
    assert trial.metrics["p95_ttft_ms"]["value"] is None
    again = TrialRecord.from_json(trial.to_json())
    assert again == trial
    assert again.point is not None
    assert again.point.metrics["p95_ttft_ms"].value == float("inf")


@settings(max_examples=15, deadline=None)
@given(
    devices=st.integers(1, 6),
    thresholds=st.sets(st.sampled_from([8, 64, 500, 2048]), min_size=1),
    refused_seqs=st.sampled_from([0, 8, 256]),
    objective=st.sampled_from(list(Objective)),
    seed=st.integers(0, 2**32 - 1),
    history=st.lists(st.floats(1, 5000), max_size=9),
)
def test_every_suggestion_is_feasible_fresh_and_the_same_again(
    devices: int,
    thresholds: set[int],
    refused_seqs: int,
    objective: Objective,
    seed: int,
    history: list[float],
) -> None:
    space = build_space(SMALL, devices, check_memory=lambda plan: None, max_model_len=4096)
    space = replace(
        space,
        thresholds=tuple(sorted(thresholds)),
        step_ms=STEP_MS,
        orders=ORDERS,
        refused=frozenset(
            (plan, refused_seqs, tokens) for plan in space.plans for tokens in (512,)
        ),
    )
    grid = Grid(space)
    trials = [record(n, grid.settings(n * 7 % len(grid)), ttft) for n, ttft in enumerate(history)]

    def ask() -> list[Settings]:
        return suggest(
            grid, SLA, trials, seed=seed, number=len(trials), count=3, objective=objective
        )

    found = ask()
    assert found == ask()
    assert len(set(found)) == 3
    assert not set(found) & {trial.settings for trial in trials}
    for one in found:
        assert one.plan in space.plans
        assert not one.plan.shift or one.threshold_tokens in space.thresholds
        assert (one.plan, one.caps.max_num_seqs, one.caps.max_num_batched_tokens) not in (
            space.refused
        )
        assert grid.row_of(one) is not None


def test_a_space_that_was_tried_to_its_end_has_nothing_to_suggest() -> None:
    space = build_space(SMALL, 1, check_memory=lambda plan: None, max_model_len=4096)
    grid = Grid(replace(space, num_seqs=(8, 16), batched_tokens=(128,)))
    trials = [record(n, one, 100.0) for n, one in enumerate(grid)]
    assert len(suggest(grid, SLA, trials[:1], seed=0, number=1, count=3)) == 1
    assert suggest(grid, SLA, trials, seed=0, number=2, count=3) == []
