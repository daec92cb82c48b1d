"""The margin of a forecast that the slow loop holds: as much of it as misses ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity_loop import decide_capacity
from policies.capacity_state import CapacityMemory, CapacityReason
from tests.policies.capacity import ahead, entry, state


def test_the_margin_of_the_forecast_is_held_too() -> None:
    """Peaks were a fifth above the forecast before: what just fits the forecast does not do."""
    decision = decide_capacity(state(3.9, 2, forecast=ahead(3.9, error=math.log(1.2))))
    assert decision.entry == entry(3)


def watched(attainments: Sequence[float], *, every_s: float = 10.0, **extra: object) -> list[float]:
    """The shares of the margin that are held after windows that attained so much."""
    turn, shares = state(3.9, 3, now_s=0.0, forecast=ahead(3.9, error=math.log(1.2)), **extra), []
    for nth, attainment in enumerate([1.0, *attainments]):
        turn = replace(turn, now_s=nth * every_s, attainment=attainment)
        turn = replace(turn, memory=decide_capacity(turn).memory)
        shares.append(turn.memory.caution)
    return shares[1:]


def test_without_a_miss_the_margin_is_given_up_and_with_some_it_is_back() -> None:
    calm = watched([1.0] * 30)
    assert calm[-1] == pytest.approx(0.0, abs=1e-9)
    turn = state(3.9, 2, forecast=ahead(3.9, error=math.log(1.2)))
    trusting = replace(turn, memory=CapacityMemory(caution=calm[-1]))
    assert decide_capacity(trusting).reason is CapacityReason.HOLDS
    missed = watched([1.0] * 30 + [0.2] * 3)
    assert missed[-1] == 1.0
    cautious = replace(turn, memory=CapacityMemory(caution=missed[-1]))
    assert decide_capacity(cautious).entry == entry(3)


@pytest.mark.parametrize("extra", [{"attainment": None}, {"admitted_rps": 4.0}])
def test_what_too_few_tell_or_while_others_are_turned_away_moves_no_margin(
    extra: dict[str, object],
) -> None:
    memory = CapacityMemory(caution=0.4, decided_s=9_900.0)
    turn = state(3.9, 2, memory=memory, **{"attainment": 1.0, **extra})
    assert decide_capacity(turn).memory.caution == 0.4


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_where_less_than_all_of_the_margin_is_held_no_more_missed_than_may(
    attainments: list[float],
) -> None:
    """Whatever came: since all of it was held last, five in a hundred requests missed at most (half
    of what this SLA lets miss)."""
    shares = watched(attainments)
    assert all(0.0 <= share <= 1.0 for share in shares)
    whole = [nth for nth, share in enumerate(shares) if share == 1.0]
    since = attainments[whole[-1] + 1 if whole else 0 :]
    assert sum(1 - share for share in since) <= 0.05 * len(since) + 1e-9
