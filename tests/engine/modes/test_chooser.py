"""The mode rule: thresholds, pins and measured tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.plan import Mode, ParallelPlan
from engine.spec.settings import ModePin, Settings
from tests.engine.modes.test_table import make_table, tables

SHIFT = ParallelPlan(sp=2, shift=True)
TABLE = make_table((8, 10, 5), (16, 10, 12), (32, 15, 14), (64, 20, 40))


def chooser(
    pin: ModePin,
    *,
    plan: ParallelPlan = SHIFT,
    table: ModeTable | None = TABLE,
    coin_seed: int | None = None,
) -> ModeChooser:
    return ModeChooser(plan=plan, threshold_tokens=20, pin=pin, table=table, coin_seed=coin_seed)


def test_a_table_decides_by_bucket_even_where_no_single_threshold_could() -> None:
    modes = [chooser(ModePin.TABLE).choose(n, 0) for n in (8, 16, 32, 64)]
    assert modes == [Mode.SHIFT, Mode.BASE, Mode.SHIFT, Mode.BASE]


def test_without_a_table_the_threshold_decides() -> None:
    without = chooser(ModePin.TABLE, table=None)
    assert [without.choose(n, 0) for n in (20, 21)] == [Mode.SHIFT, Mode.BASE]
    assert without.largest_shift_tokens == 20


def test_an_operators_threshold_holds_against_the_table() -> None:
    assert [chooser(ModePin.AUTO).choose(n, 0) for n in (16, 20, 21, 32)] == [
        Mode.SHIFT,
        Mode.SHIFT,
        Mode.BASE,
        Mode.BASE,
    ]


def test_a_plan_without_shift_runs_in_base_whatever_the_table_says() -> None:
    plain = chooser(ModePin.TABLE, plan=ParallelPlan(sp=2))
    assert plain.choose(8, 0) is Mode.BASE
    assert plain.largest_shift_tokens == 0


@pytest.mark.parametrize(
    ("pin", "largest"),
    [
        (ModePin.TABLE, 32),
        (ModePin.AUTO, 20),
        (ModePin.BASE, 0),
        (ModePin.SHIFT, MAX_STEP_TOKENS),
    ],
)
def test_the_largest_shift_step_follows_the_pin(pin: ModePin, largest: int) -> None:
    assert chooser(pin).largest_shift_tokens == largest


@given(
    pin=st.sampled_from(ModePin),
    coin_seed=st.sampled_from([None, 5]),
    table=tables() | st.none(),
    at_most=st.integers(0, 6000),
    step_id=st.integers(0, 100),
    mode=st.sampled_from(Mode),
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
    counted = next((n for n in range(at_most, 0, -1) if rule.choose(n, step_id) is mode), 0)
    assert rule.largest_tokens(mode, at_most, step_id) == counted


def test_a_coin_flips_the_mode_from_seed_and_step_alone() -> None:
    def flips(seed: int) -> list[Mode]:
        return [chooser(ModePin.AUTO, coin_seed=seed).choose(1, step) for step in range(400)]

    assert 120 < flips(5).count(Mode.BASE) < 280
    assert flips(5) == flips(5) != flips(6)


def test_the_rule_of_settings_is_theirs() -> None:
    settings = Settings(plan=SHIFT, threshold_tokens=128)
    auto = ModeChooser.of(settings)
    assert [auto.choose(n, 0) for n in (1, 128, 129)] == [Mode.SHIFT, Mode.SHIFT, Mode.BASE]
    assert ModeChooser.of(replace(settings, pin=ModePin.BASE)).choose(1, 0) is Mode.BASE
    assert ModeChooser.of(replace(settings, pin=ModePin.SHIFT)).choose(9999, 0) is Mode.SHIFT
