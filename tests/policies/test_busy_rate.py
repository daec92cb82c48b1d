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


@pytest.mark.parametrize("seen", [(False, True), (True, False), (False, False)])
def test_while_no_queue_is_felt_nothing_is_learned(seen: tuple[bool, bool]) -> None:
    assert looks(*((50.0, 10.0, is_felt) for is_felt in seen)).rps_of(PLAN) == 0.0


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
    served_rps = draw(st.floats(4.0, 60.0))
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


@settings(deadline=None, max_examples=25)
@given(gusts())
def test_a_door_never_serves_gusts_worse_than_none_and_shuts_for_none_that_is_soon_over(
    drawn: tuple[dict[str, float], list[tuple[float, float]]],
) -> None:
    server, load = drawn
    with_door, without = run(server, load), run(server, load, has_door=False)
    assert with_door.met_share(0.0) >= without.met_share(0.0) - 0.01


@settings(deadline=None, max_examples=25)
@given(gusts())
def test_what_is_remembered_of_gusts_is_what_is_served(
    drawn: tuple[dict[str, float], list[tuple[float, float]]],
) -> None:
    server, load = drawn
    queue = run(server, load)
    known_rps = queue.memory.busy.rps_of(queue.plan)
    # Nothing, where each queue was gone at the next look.
    assert known_rps == 0 or 0.75 <= known_rps / server["served_rps"] <= 1.02
