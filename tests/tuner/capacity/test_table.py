"""What goes into a capacity table, on made-up plans whose capacity is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.capacity_table import CarriedRate
from policies.sla import Sla
from tuner.capacity.table import (
    REPLICAS_OFF,
    Standing,
    check_has_table,
    climb,
    near,
    table_of,
    worth_fitting,
    worth_looking,
)
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

LIMITS = (1e-3, 1000.0)
SLA = Sla.parse("p95_ttft_ms<=500")
LOAD = parse_workload("poisson:rate=4,input=64,output=4,requests=20", seed=0)


def of(tokens: int, *, dp: int = 1, tp: int = 1) -> Settings:
    return Settings(plan=ParallelPlan(dp=dp, tp=tp), caps=Caps(max_num_batched_tokens=tokens))


def plan(text: str) -> ParallelPlan:
    return ParallelPlan(**{axis: int(n) for axis, n in (p.split("=") for p in text.split(","))})


def carried(
    text: str, low: float, high: float | None, fidelity: Fidelity = Fidelity.SIMULATED
) -> CarriedRate:
    """Of made-up plans ("dp=2,tp=2")."""
    return CarriedRate(
        settings=Settings(plan=plan(text)),
        rate_rps=low if high is None else (low + high) / 2,
        low_rps=low,
        high_rps=high,
        fidelity=fidelity,
    )


def offered(*entries: CarriedRate, beside: str | None = None) -> list[str]:
    found = table_of(LOAD, SLA, entries, beside=None if beside is None else plan(beside))
    return [str(entry.settings.plan) for entry in found.entries]


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


def test_replicas_of_what_is_near_are_fitted_though_they_carry_less() -> None:
    two, four = (
        Standing(settings=of(512, tp=2), factor=1.0),
        Standing(settings=of(512, tp=4), factor=2.2),
    )
    replicas = Standing(settings=of(512, tp=2, dp=2), factor=1.9)
    assert worth_fitting([two, four, replicas]) == [two, four, replicas]
    far = Standing(settings=of(512, tp=2, dp=2), factor=1.6)
    assert worth_fitting([two, four, far]) == [two, four]


def test_of_what_may_carry_as_much_replicas_of_the_smaller_entry_are_offered() -> None:
    """They come and go while others serve; another degree stops them all."""
    small, other = carried("tp=2", 2.4, 2.7), carried("pp=2,sp=2", 5.5, 6.3)
    assert offered(small, other, carried("dp=2,tp=2", 5.0, 5.6)) == ["tp=2", "dp=2,tp=2"]
    assert offered(small, other, carried("dp=2,tp=2", 4.4, 5.3)) == ["tp=2", "pp=2,sp=2"]
    # More replicas of another kind are no easier to go to.
    many = carried("dp=4", 5.1, 5.9)
    assert offered(small, other, many, carried("dp=2,tp=2", 5.0, 5.6))[1] == "dp=2,tp=2"


def test_what_is_to_be_in_force_is_offered_with_its_replicas() -> None:
    entries = (
        *(carried("tp=2", 2.4, 2.8), carried("pp=2", 2.5, 2.9)),
        *(carried("dp=2,tp=2", 4.9, 5.6), carried("dp=2,pp=2", 5.1, 5.7)),
    )
    assert offered(*entries) == ["pp=2", "dp=2,pp=2"]
    assert offered(*entries, beside="tp=2") == ["tp=2", "dp=2,tp=2"]


def test_a_plan_never_run_is_offered_only_where_its_low_end_beats_one_that_ran() -> None:
    ran = carried("tp=2", 6.0, 7.0, Fidelity.MEASURED)
    assert offered(ran, carried("pp=2", 5.5, 12.0), carried("dp=2", 4.0, 9.0)) == ["tp=2"]
    assert offered(ran, carried("pp=2", 6.1, 12.0)) == ["pp=2"]
    assert offered(ran, carried("pp=2", 6.0, 12.0), carried("dp=2", 6.0, 12.0)) == ["tp=2"]


PLANS = ("tp=1", "tp=2", "pp=2", "dp=2", "tp=4", "dp=2,tp=2", "pp=2,sp=2", "dp=4")
RATES = st.tuples(st.floats(0.5, 20), st.floats(1, 1.5), st.sampled_from(list(Fidelity)))


@given(st.lists(RATES, min_size=len(PLANS), max_size=len(PLANS)))
def test_what_is_offered_may_carry_as_much_as_the_best_and_more_than_fewer_devices(
    found: list[tuple[float, float, Fidelity]],
) -> None:
    pairs = zip(PLANS, found, strict=True)
    entries = [carried(text, low, low * wide, known) for text, (low, wide, known) in pairs]
    kept = table_of(LOAD, SLA, entries).entries
    assert [e.low_rps for e in kept] == sorted(e.low_rps for e in kept)
    for entry in kept:
        own = [other for other in entries if other.num_devices == entry.num_devices]
        best = max(own, key=lambda other: other.low_rps)
        if entry is best:
            continue
        assert entry.high_rps is not None
        assert entry.high_rps >= best.low_rps
        assert entry.rate_rps >= (1 - REPLICAS_OFF) * best.rate_rps
        assert entry.fidelity not in list(Fidelity)[: list(Fidelity).index(best.fidelity)]
