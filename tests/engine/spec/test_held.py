"""Plans that ranks step as without starting again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.spec.held import list_held, settings_on, why_not_held
from engine.spec.modes import ModePin
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Settings

SP8 = ParallelPlan(sp=8, shift=True)


def test_a_ladder_holds_those_of_its_rungs_with_and_without_shift() -> None:
    assert [str(plan) for plan in list_held(SP8)] == [
        "sp=8,shift",
        "sp=8",
        "sp=4,tp=2,shift",
        "sp=4,tp=2",
        "sp=2,tp=4,shift",
        "sp=2,tp=4",
        "tp=8",
    ]
    assert list_held(ParallelPlan(sp=8)) == (ParallelPlan(sp=8),)


@pytest.mark.parametrize(
    ("held", "plan", "why"),
    [
        ("sp=8,shift", "dp=2,sp=4,shift", "dp=1 -> 2: other ranks"),
        ("sp=8,shift", "pp=2,sp=4", "pp=1 -> 2: other ranks"),
        ("sp=8,shift", "sp=4", "a stage of 4 ranks instead of 8"),
        ("sp=8", "sp=4,tp=2", "ranks of plan sp=8 have one mode; started with Shift on"),
        ("sp=8", "sp=8,shift", "ranks of plan sp=8 have one mode"),
        (
            "sp=4,tp=2,shift",
            "sp=8,shift",
            "sp=8,tp=1 is no rung of what ranks hold",
        ),
    ],
)
def test_what_takes_other_shards_says_why(held: str, plan: str, why: str) -> None:
    found = why_not_held(parse_plan(held).plan, parse_plan(plan).plan)
    assert found is not None
    assert found.startswith(why)


@given(
    held=st.builds(
        ParallelPlan,
        dp=st.integers(1, 2),
        pp=st.integers(1, 2),
        sp=st.sampled_from((2, 4, 6, 12)),
        tp=st.integers(1, 3),
        shift=st.just(True),
    ),
    data=st.data(),
)
def test_every_step_has_the_degrees_that_it_would_have_on_ranks_of_its_own(
    held: ParallelPlan, data: st.DataObject
) -> None:
    plan = data.draw(st.sampled_from(list_held(held)))
    assert why_not_held(held, plan) is None
    rungs = data.draw(st.none() | st.sets(st.sampled_from(plan.modes), min_size=1))
    named = None if rungs is None else tuple(mode for mode in plan.modes if mode in rungs)
    own = Settings(
        plan=plan,
        rungs=named,
        threshold_tokens=data.draw(st.integers(0, 99)),
        rung_thresholds=tuple((mode, data.draw(st.integers(0, 99))) for mode in plan.modes[1:-1]),
    )
    pin = data.draw(st.sampled_from(("auto", *own.modes)))
    own = replace(own, pin=ModePin(pin))
    there = settings_on(held, own)
    assert there.plan == held
    for num_tokens in (1, 50, 500):
        wanted = plan.rung(ModeChooser.of(own).choose(num_tokens, 0))
        assert held.rung(ModeChooser.of(there).choose(num_tokens, 0)) == wanted
