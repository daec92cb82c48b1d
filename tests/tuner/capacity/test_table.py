"""What goes into a capacity table, on made-up plans whose capacity is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.capacity.table import (
    Standing,
    check_has_table,
    climb,
    near,
    worth_fitting,
    worth_looking,
)
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

LIMITS = (1e-3, 1000.0)


def of(tokens: int, *, dp: int = 1, tp: int = 1) -> Settings:
    return Settings(plan=ParallelPlan(dp=dp, tp=tp), caps=Caps(max_num_batched_tokens=tokens))


def carrying(edges: dict[Settings, float]) -> Callable[[Settings, float], bool]:
    return lambda served, factor: factor <= edges[served]


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=6))
def test_a_climb_ends_near_the_best_of_a_plans_settings(found: list[float]) -> None:
    edges = {of(512 * (n + 1)): edge for n, edge in enumerate(found)}
    best = climb(list(edges), carrying(edges), LIMITS)
    assert best is not None
    assert best.factor <= edges[best.settings]
    assert best.factor > max(found) / 1.07


def test_settings_that_carry_nothing_have_no_standing() -> None:
    edges = {of(512): 1e-4}
    assert climb([of(512)], carrying(edges), LIMITS) is None
    assert near(Standing(settings=of(512), factor=3.0), carrying(edges), LIMITS) is None


@given(st.floats(0.01, 900), st.floats(0.01, 900))
def test_a_wrong_guess_is_put_right(guess: float, edge: float) -> None:
    found = near(Standing(settings=of(512), factor=guess), carrying({of(512): edge}), LIMITS)
    assert found is not None
    assert found.factor <= edge < 1.06 * found.factor


def test_replicas_are_looked_at_where_they_may_win_and_only_what_adds_is_fitted() -> None:
    one, two = Standing(settings=of(512), factor=1.0), Standing(settings=of(512, tp=2), factor=1.5)
    replicated = Standing(settings=of(512, dp=2), factor=2.0)
    slow = Standing(settings=of(256, dp=2), factor=0.9)
    assert worth_looking([one, two], [replicated, slow]) == [replicated]
    assert worth_fitting([one, two, replicated]) == [one, replicated]
    dear = Standing(settings=of(512, dp=3), factor=1.2)
    assert worth_fitting([one, replicated, dear]) == [one, replicated]


@pytest.mark.parametrize(
    "spec",
    [
        "closed:concurrency=4,input=8,output=4,requests=8",
        "poisson:rate=4,input=64,output=4,requests=1",
    ],
)
def test_a_workload_without_a_rate_has_no_table(spec: str) -> None:
    with pytest.raises(TunerError, match="a capacity table is of rates"):
        check_has_table(parse_workload(spec, seed=0))
