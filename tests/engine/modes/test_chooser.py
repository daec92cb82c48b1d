"""The mode rule: thresholds, pins and measured tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.errors import PolicyError
from engine.spec.plan import Mode, ParallelPlan
from tests.engine.modes.test_table import make_table, tables

SHIFT = ParallelPlan(sp=2, shift=True)
PINS = ("table", "auto", "base", "shift", "random:5")
TABLE = make_table((8, 10, 5), (16, 10, 12), (32, 15, 14), (64, 20, 40))


def chooser(
    pin: str, *, plan: ParallelPlan = SHIFT, table: ModeTable | None = TABLE
) -> ModeChooser:
    return ModeChooser(plan=plan, threshold_tokens=20, pin=pin, table=table)


def test_a_table_decides_by_bucket_even_where_no_single_threshold_could() -> None:
    modes = [chooser("table").choose(n, 0) for n in (8, 16, 32, 64)]
    assert modes == [Mode.SHIFT, Mode.BASE, Mode.SHIFT, Mode.BASE]


def test_without_a_table_the_threshold_decides() -> None:
    without = chooser("table", table=None)
    assert [without.choose(n, 0) for n in (20, 21)] == [Mode.SHIFT, Mode.BASE]
    assert without.largest_shift_tokens == 20


def test_an_operators_threshold_holds_against_the_table() -> None:
    assert [chooser("auto").choose(n, 0) for n in (16, 20, 21, 32)] == [
        Mode.SHIFT,
        Mode.SHIFT,
        Mode.BASE,
        Mode.BASE,
    ]


def test_a_plan_without_shift_runs_in_base_whatever_the_table_says() -> None:
    plain = chooser("table", plan=ParallelPlan(sp=2))
    assert plain.choose(8, 0) is Mode.BASE
    assert plain.largest_shift_tokens == 0


@pytest.mark.parametrize(
    ("pin", "largest"),
    [("table", 32), ("auto", 20), ("base", 0), ("shift", MAX_STEP_TOKENS)],
)
def test_the_largest_shift_step_follows_the_pin(pin: str, largest: int) -> None:
    assert chooser(pin).largest_shift_tokens == largest


@given(
    pin=st.sampled_from(PINS),
    table=tables() | st.none(),
    at_most=st.integers(0, 6000),
    step_id=st.integers(0, 100),
    mode=st.sampled_from(Mode),
)
def test_the_largest_step_of_a_mode_is_the_one_that_counting_down_finds(
    pin: str, table: ModeTable | None, at_most: int, step_id: int, mode: Mode
) -> None:
    rule = chooser(pin, table=table)
    counted = next((n for n in range(at_most, 0, -1) if rule.choose(n, step_id) is mode), 0)
    assert rule.largest_tokens(mode, at_most, step_id) == counted


def test_an_unknown_pin_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(PolicyError, match="use table, auto, base, shift or random:SEED"):
        chooser("tables")
