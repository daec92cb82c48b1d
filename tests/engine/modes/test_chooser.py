"""The mode rule: thresholds, pins and measured tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.modes import AUTO, BASE, ENDS, PIN_RULES, SHIFT, TABLE, Mode, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.rungs import rungs_of, thresholds_of
from engine.spec.settings import Settings
from tests.engine.modes.test_table import make_table, tables

SHIFT_PLAN = ParallelPlan(sp=2, shift=True)
LADDER = ParallelPlan(sp=8, shift=True)
TIMES = make_table((8, 10, 5), (16, 10, 12), (32, 15, 14), (64, 20, 40))


def chooser(
    pin: ModePin,
    *,
    plan: ParallelPlan = SHIFT_PLAN,
    table: ModeTable | None = TIMES,
    coin_seed: int | None = None,
) -> ModeChooser:
    return ModeChooser(plan=plan, threshold_tokens=20, pin=pin, table=table, coin_seed=coin_seed)


def test_a_table_decides_by_bucket_even_where_no_single_threshold_could() -> None:
    modes = [chooser(TABLE).choose(n, 0) for n in (8, 16, 32, 64)]
    assert modes == [SHIFT, BASE, SHIFT, BASE]


def test_without_a_table_the_threshold_decides() -> None:
    without = chooser(TABLE, table=None)
    assert [without.choose(n, 0) for n in (20, 21)] == [SHIFT, BASE]
    assert without.largest_shift_tokens == 20


def test_an_operators_threshold_holds_against_the_table() -> None:
    assert [chooser(AUTO).choose(n, 0) for n in (16, 20, 21, 32)] == [
        SHIFT,
        SHIFT,
        BASE,
        BASE,
    ]


def test_a_plan_without_shift_runs_in_base_whatever_the_table_says() -> None:
    plain = chooser(TABLE, plan=ParallelPlan(sp=2))
    assert plain.choose(8, 0) == BASE
    assert plain.largest_shift_tokens == 0


@pytest.mark.parametrize(
    ("pin", "largest"),
    [
        (TABLE, 32),
        (AUTO, 20),
        (ModePin(BASE), 0),
        (ModePin(SHIFT), MAX_STEP_TOKENS),
    ],
)
def test_the_largest_shift_step_follows_the_pin(pin: ModePin, largest: int) -> None:
    assert chooser(pin).largest_shift_tokens == largest


@given(
    pin=st.sampled_from((*PIN_RULES, *map(ModePin, ENDS))),
    coin_seed=st.sampled_from([None, 5]),
    table=tables() | st.none(),
    at_most=st.integers(0, 6000),
    step_id=st.integers(0, 100),
    mode=st.sampled_from(ENDS),
)
def test_the_largest_step_of_a_mode_is_the_one_that_counting_down_finds(
    pin: ModePin,
    coin_seed: int | None,
    table: ModeTable | None,
    at_most: int,
    step_id: int,
    mode: Mode,
) -> None:
    rule = chooser(pin, table=table, coin_seed=coin_seed)
    counted = next((n for n in range(at_most, 0, -1) if rule.choose(n, step_id) == mode), 0)
    assert rule.largest_tokens(mode, at_most, step_id) == counted


def test_a_coin_flips_the_mode_from_seed_and_step_alone() -> None:
    def flips(seed: int) -> list[Mode]:
        return [chooser(AUTO, coin_seed=seed).choose(1, step) for step in range(400)]

    assert 120 < flips(5).count(BASE) < 280
    assert flips(5) == flips(5) != flips(6)


def test_a_coin_draws_every_rung_of_the_ladder() -> None:
    rule = ModeChooser(plan=LADDER, threshold_tokens=0, coin_seed=5)
    drawn = [rule.choose(1, step) for step in range(400)]
    assert set(drawn) == set(LADDER.modes)
    assert all(60 < drawn.count(mode) < 140 for mode in LADDER.modes)


def test_by_thresholds_a_step_takes_the_rung_of_the_fewest_slices_that_may_hold_it() -> None:
    settings = Settings(
        plan=LADDER, threshold_tokens=64, rung_thresholds=((Mode("4x2"), 1024), (Mode("2x4"), 256))
    )
    rule = ModeChooser.of(settings)
    assert [rule.choose(n, 0) for n in (64, 65, 256, 257, 1024, 1025)] == [
        "shift",
        "2x4",
        "2x4",
        "4x2",
        "4x2",
        "base",
    ]
    few = replace(settings, rungs=(Mode("4x2"), SHIFT))
    assert [ModeChooser.of(few).choose(n, 0) for n in (64, 65, 9999)] == [
        "shift",
        "4x2",
        "4x2",
    ]


def test_without_thresholds_of_their_own_rungs_between_base_and_shift_get_no_steps() -> None:
    rule = ModeChooser.of(Settings(plan=LADDER, threshold_tokens=64))
    assert {rule.choose(n, 0) for n in range(1, 3000)} == {SHIFT, BASE}
    table = make_table((8, 10, 7, 5), (64, 12, 8, 10))
    plan = ParallelPlan(sp=4, shift=True)
    by_table = Settings(plan=plan, pin=TABLE)
    assert ModeChooser.of(by_table, table=table).choose(64, 0) == "2x2"
    ends = replace(by_table, rungs=(BASE, SHIFT))
    assert ModeChooser.of(ends, table=table).choose(64, 0) == SHIFT


@given(
    thresholds=st.dictionaries(st.sampled_from(LADDER.modes[1:-1]), st.integers(0, 500)),
    rungs=st.none() | st.sets(st.sampled_from(LADDER.modes), min_size=1),
    shift=st.integers(0, 500),
    at_most=st.integers(0, 600),
    mode=st.sampled_from(LADDER.modes),
)
def test_by_thresholds_the_largest_step_of_a_rung_is_the_one_that_counting_down_finds(
    thresholds: dict[Mode, int],
    rungs: set[Mode] | None,
    shift: int,
    at_most: int,
    mode: Mode,
) -> None:
    settings = Settings(
        plan=LADDER,
        threshold_tokens=shift,
        rung_thresholds=thresholds_of(LADDER, thresholds),
        rungs=None if rungs is None else rungs_of(LADDER, rungs),
    )
    rule = ModeChooser.of(settings)
    counted = next((n for n in range(at_most, 0, -1) if rule.choose(n, 0) == mode), 0)
    assert rule.largest_tokens(mode, at_most, 0) == counted
    assert {rule.choose(n, 0) for n in range(1, 600)} <= set(settings.modes)


def test_the_rule_of_settings_is_theirs() -> None:
    settings = Settings(plan=SHIFT_PLAN, threshold_tokens=128)
    auto = ModeChooser.of(settings)
    assert [auto.choose(n, 0) for n in (1, 128, 129)] == [SHIFT, SHIFT, BASE]
    assert ModeChooser.of(replace(settings, pin=ModePin(BASE))).choose(1, 0) == BASE
    assert ModeChooser.of(replace(settings, pin=ModePin(SHIFT))).choose(9999, 0) == SHIFT
