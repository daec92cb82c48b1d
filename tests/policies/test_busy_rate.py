"""What a busy engine begins is remembered from gust to gust, so that none shuts its door."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.busy_rate import BusyRate, felt_from, watch_busy
from tests.policies.fluid_queue import FluidQueue

PLAN = "tp=1"


def looks(*seen: tuple[float, float, bool], every_s: float = 5.0, plan: str = PLAN) -> BusyRate:
    """What is remembered of looks at (ended, running, is_felt), five seconds apart."""
    memory = BusyRate()
    for nth, (ended, running, is_felt) in enumerate(seen, start=1):
        memory = watch_busy(
            memory,
            plan=plan,
            now_s=every_s * nth,
            seconds=5.0,
            ended=ended,
            running=running,
            is_felt=is_felt,
            request_size=1.0,
        )
    return memory


def test_requests_that_are_prompts_still_have_begun_too() -> None:
    """Forty began in five seconds: ten ended, and thirty run more than before."""
    memory = looks((0.0, 0.0, True), (10.0, 30.0, True))
    assert memory.rps_of(PLAN) == pytest.approx(8.0 * (1 - 40.0**-0.5))


def test_while_no_queue_is_felt_nothing_is_learned() -> None:
    assert looks(*((50.0, 10.0, False),) * 9).rps_of(PLAN) == 0.0


def test_of_a_queue_that_comes_or_goes_in_a_look_only_more_than_was_known_is_believed() -> None:
    """Ten a second at least have begun in these looks."""
    ends = [(50.0, 10.0, False), (50.0, 10.0, True)]
    slow, fast = [((20.0, 10.0, True),) * 6, ((80.0, 10.0, True),) * 6]
    assert 8.0 < looks((0.0, 10.0, False), *ends).rps_of(PLAN) <= 10.0
    assert looks(*slow).rps_of(PLAN) < looks(*slow, *ends).rps_of(PLAN) < 10.0
    assert looks(*fast, *ends).rps_of(PLAN) == looks(*fast).rps_of(PLAN)


def test_little_says_nothing_and_neither_does_what_nobody_saw_or_another_plan() -> None:
    flood = ((50.0, 10.0, True),) * 3
    assert looks(*((5.0, 10.0, True),) * 3).rps_of(PLAN) == 0.0
    assert looks(*flood, every_s=20.0).rps_of(PLAN) == 0.0
    assert looks(*flood).rps_of(PLAN) > 0.0
    assert looks(*flood).rps_of("tp=2") == 0.0


def test_an_engine_that_became_slower_is_believed_within_minutes() -> None:
    memory = looks(*((100.0, 10.0, True),) * 40, *((50.0, 10.0, True),) * 40)
    assert 9.0 < memory.rps_of(PLAN) < 11.0


@given(st.floats(0.0, 1000.0), st.floats(0.0, 1000.0))
def test_the_more_the_sla_bears_the_later_a_queue_is_felt(borne: float, more: float) -> None:
    assert 0.0 <= felt_from(borne) <= borne
    assert felt_from(borne) <= felt_from(borne + more)


@st.composite
def gusts(draw: st.DrawFn) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """A server, and what comes: (requests a second, seconds), gusts and little in turn."""
    served_rps = draw(st.floats(8.0, 60.0))
    server = {
        "served_rps": served_rps,
        "table_rps": served_rps * draw(st.floats(0.25, 1.0)),
        # Up to what a door lets in at once.
        "bound_s": draw(st.floats(0.5, 2.0)),
        "answer_s": draw(st.sampled_from((1.0, 4.0, 12.0))),
    }
    times = draw(st.floats(1.3, 4.0))
    gust_s = 5.0 * draw(st.integers(2, 6))
    calm_s = 5.0 * draw(st.integers(12, 30))
    calm_rps = served_rps * draw(st.floats(0.0, 0.2))
    return server, [(times * served_rps, gust_s), (calm_rps, calm_s)] * 4


def run(server: dict[str, float], load: list[tuple[float, float]], **extra: bool) -> FluidQueue:
    queue = FluidQueue(offered_rps=0.0, **server, **extra)
    for offered_rps, seconds in load:
        queue.offered_rps = offered_rps
        queue.run(seconds)
    return queue


def test_after_a_gust_a_load_that_the_engine_serves_well_is_not_turned_away() -> None:
    """A table that promises a quarter of what is served: without what is remembered three in a
    hundred fewer met the SLA than with no door at all."""
    server = {"served_rps": 14.0, "table_rps": 3.2, "bound_s": 1.0, "answer_s": 1.0}
    load = [(29.0, 30.0), (0.7, 60.0), (13.9, 30.0), (0.7, 60.0)] * 2
    with_door, without = run(server, load), run(server, load, has_door=False)
    assert with_door.met_share(0.0) >= without.met_share(0.0) + 0.03


@settings(deadline=None, max_examples=15)
@given(gusts())
def test_a_door_of_an_engine_that_was_busy_before_serves_gusts_no_worse_than_none(
    drawn: tuple[dict[str, float], list[tuple[float, float]]],
) -> None:
    server, load = drawn
    with_door, without = run(server, load), run(server, load, has_door=False)
    since_s = sum(seconds for _, seconds in load[:2])  # of the first gust nothing is known
    assert with_door.met_share(since_s) >= without.met_share(since_s) - 0.03


@settings(deadline=None, max_examples=15)
@given(gusts())
def test_what_is_remembered_of_gusts_is_what_is_served(
    drawn: tuple[dict[str, float], list[tuple[float, float]]],
) -> None:
    server, load = drawn
    queue = run(server, load)
    known_rps = queue.memory.busy.rps_of(queue.plan)
    # Nothing, where hardly a queue was felt; of few a fifth is luck.
    assert known_rps == 0 or 0.6 <= known_rps / server["served_rps"] <= 1.02
