"""The way from plan to plan: never more devices than there are, and somebody serves."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.spec.inventory import Inventory, RankKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan, parse_plan
from engine.transition.planning import Slot, Transition, Way, first_slots, plan_transition

MODEL = ModelConfig(
    model_type="llama",
    num_layers=4,
    hidden_size=64,
    ffn_size=128,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=515,
    max_positions=4096,
)


def plans() -> st.SearchStrategy[ParallelPlan]:
    degrees = st.integers(1, 3)
    return st.builds(ParallelPlan, dp=st.integers(1, 5), pp=degrees, sp=degrees, tp=degrees)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[ParallelPlan, list[Slot], ParallelPlan, int, int | None]:
    """A plan that serves in any slots of its size, another plan, and devices enough for each."""
    old, new = draw(plans()), draw(plans())
    least = max(old.world_size, new.world_size)
    most = draw(st.integers(least, least + 16))
    places = range(most // old.replica_size)
    chosen = draw(st.permutations(places))[: old.dp]
    serving = [Slot(first=place * old.replica_size, size=old.replica_size) for place in chosen]
    limit = draw(st.none() | st.integers(least, most + 4))
    return old, serving, new, most, limit


@settings(max_examples=60)
@given(worlds())
def test_no_moment_of_the_way_asks_for_what_is_not_there(
    world: tuple[ParallelPlan, list[Slot], ParallelPlan, int, int | None],
) -> None:
    old, serving, new, most, limit = world
    assume(old != new)
    inventory = Inventory(kind=RankKind.PACED, max_ranks=most)
    way = plan_transition(old, serving, new, inventory=inventory, model=MODEL, most_ranks=limit)
    running, fresh, peak, least = list(serving), list[Slot](), old.world_size, old.world_size
    for step in way.steps:
        assert set(step.retire) <= set(serving), "only the old ones leave"
        running = [slot for slot in running if slot not in step.retire]
        if way.way is not Way.STOP_AND_CARRY:
            assert running, "somebody serves"
        least = min(least, sum(slot.size for slot in running))
        running += step.start
        fresh += step.start
        assert all(slot.first >= 0 and slot.first + slot.size <= most for slot in running)
        for one, other in combinations(running, 2):
            assert set(one.ranks).isdisjoint(other.ranks)
        peak = max(peak, sum(slot.size for slot in running))
    assert len(running) == new.dp
    assert {slot.size for slot in running} == {new.replica_size}
    assert all(slot.first % slot.size == 0 for slot in running)
    if old.replica != new.replica:
        assert set(running) == set(fresh)
    assert way.peak_devices == peak <= (most if limit is None else min(most, limit))
    assert way.least_devices == least
    assert (way.least_devices == 0) == (way.way is Way.STOP_AND_CARRY)
    if old.replica == new.replica:
        assert way.way in (Way.ADD, Way.REMOVE)


def way_between(
    old: str, new: str, devices: int, *, memory_bytes: int | None = None, limit: int | None = None
) -> Transition:
    before, after = parse_plan(old).plan, parse_plan(new).plan
    inventory = Inventory(
        kind=RankKind.CPU, max_ranks=devices, memory_bytes=memory_bytes, num_kv_blocks=16
    )
    return plan_transition(
        before, first_slots(before), after, inventory=inventory, model=MODEL, most_ranks=limit
    )


@pytest.mark.parametrize(
    ("old", "new", "devices", "way", "peak", "least"),
    [
        ("dp=1,tp=2", "dp=3,tp=2", 8, Way.ADD, 6, 2),
        ("dp=3,tp=2", "dp=1,tp=2", 8, Way.REMOVE, 6, 2),
        ("tp=4", "sp=4", 8, Way.BLUE_GREEN, 8, 4),
        ("tp=4", "sp=4", 7, Way.STOP_AND_CARRY, 4, 0),
        ("dp=4,tp=2", "dp=2,tp=4", 8, Way.ROLLING, 8, 4),
        ("dp=2,tp=2", "dp=2,sp=2", 5, Way.ROLLING, 4, 2),
        ("dp=2,tp=2", "dp=2,sp=2", 6, Way.ROLLING, 6, 4),
        ("tp=8", "dp=4,tp=2", 8, Way.STOP_AND_CARRY, 8, 0),
    ],
)
def test_the_least_disturbing_way_is_chosen(
    old: str, new: str, devices: int, way: Way, peak: int, least: int
) -> None:
    found = way_between(old, new, devices)
    assert (found.way, found.peak_devices, found.least_devices) == (way, peak, least)


def test_what_is_short_is_respected_whatever_it_is() -> None:
    assert way_between("tp=2", "sp=2", 8, limit=4).way is Way.BLUE_GREEN
    assert way_between("tp=2", "sp=2", 8, limit=3).way is Way.STOP_AND_CARRY
    assert way_between("tp=2", "sp=2", 8, memory_bytes=10**9).way is Way.BLUE_GREEN
    assert way_between("tp=2", "sp=2", 8, memory_bytes=6 * 10**8).way is Way.STOP_AND_CARRY


def test_the_last_of_those_that_serve_leave_first() -> None:
    plan = ParallelPlan(dp=3)
    serving = [Slot(first=2, size=1), Slot(first=0, size=1), Slot(first=1, size=1)]
    inventory = Inventory(kind=RankKind.PACED, max_ranks=4)
    way = plan_transition(plan, serving, ParallelPlan(), inventory=inventory, model=MODEL)
    assert way.steps[0].retire == (Slot(first=0, size=1), Slot(first=1, size=1))
