"""Chunk sizes: as much prompt as fits the step's time, in the mode the whole step will run in."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.modes.pace import StepPace
from engine.modes.table import ModeTable
from engine.scheduler.packing import prefill_room
from engine.spec.modes import AUTO, BASE, ENDS, PIN_RULES, SHIFT, TABLE, Mode, ModePin
from engine.spec.plan import ParallelPlan
from tests.engine.modes.test_table import tables

SHIFT_PLAN = ParallelPlan(sp=2, shift=True)
BLOCK = 16


def seen_pace(base: tuple[float, float] | None, shift: tuple[float, float] | None) -> StepPace:
    """A pace that saw steps of (milliseconds at zero tokens, milliseconds per token)."""
    pace = StepPace()
    for mode, line in ((BASE, base), (SHIFT, shift)):
        for tokens in (1, 64, 256, 1024) if line else ():
            assert line is not None
            pace.observe(mode, tokens, (line[0] + line[1] * tokens) * 1e-3)
    return pace


def room(
    *,
    used: int = 0,
    prefill_tokens: int = 0,
    budget: int = 2048,
    max_step_ms: float | None,
    pace: StepPace,
    pin: ModePin = AUTO,
    coin_seed: int | None = None,
    threshold: int = 256,
    table: ModeTable | None = None,
    plan: ParallelPlan = SHIFT_PLAN,
) -> int:
    return prefill_room(
        used=used,
        prefill_tokens=prefill_tokens,
        budget=budget,
        max_step_ms=max_step_ms,
        block_size=BLOCK,
        chooser=ModeChooser(
            plan=plan, threshold_tokens=threshold, pin=pin, table=table, coin_seed=coin_seed
        ),
        pace=pace,
        step_id=0,
    )


# Base takes 30 ms and 0.05 ms per token, shift 5 ms and 0.1 ms per token.
PACE = seen_pace((30.0, 0.05), (5.0, 0.1))


def test_without_a_step_time_the_budget_is_the_only_limit() -> None:
    assert room(used=200, budget=1848, max_step_ms=None, pace=PACE) == 1848


def test_a_chunk_does_not_drag_decodes_into_a_base_step_that_is_too_long() -> None:
    assert room(used=200, max_step_ms=31.0, pace=PACE) == 56


def test_a_base_step_that_fits_is_taken_for_its_larger_chunk() -> None:
    assert 798 <= room(used=200, max_step_ms=80.0, pace=PACE) <= 800


def test_a_block_moves_on_under_a_cap_that_nothing_fits() -> None:
    assert room(used=100, max_step_ms=1.0, pace=PACE) == BLOCK
    assert room(used=100, max_step_ms=1.0, pace=PACE, budget=3) == 3


def test_a_second_chunk_has_no_right_to_a_block() -> None:
    assert room(used=100, prefill_tokens=BLOCK, max_step_ms=1.0, pace=PACE) == 0


def test_the_block_that_must_move_on_keeps_the_step_in_shift() -> None:
    assert room(used=250, max_step_ms=1.0, pace=PACE) == 6
    assert room(used=256, max_step_ms=1.0, pace=PACE) == BLOCK


def test_the_block_that_must_move_on_keeps_the_step_on_the_rung_of_fewer_slices() -> None:
    rule = ModeChooser(
        plan=ParallelPlan(sp=4, shift=True),
        threshold_tokens=64,
        rung_thresholds={Mode("2x2"): 256},
    )

    def moved(used: int) -> int:
        return prefill_room(
            used=used,
            prefill_tokens=0,
            budget=2048,
            max_step_ms=1.0,
            block_size=BLOCK,
            chooser=rule,
            pace=PACE,
            step_id=0,
        )

    assert [moved(used) for used in (60, 100, 250, 256)] == [4, BLOCK, 6, BLOCK]


def test_a_plan_without_shift_keeps_to_its_base_time() -> None:
    plain = room(used=100, max_step_ms=50.0, pace=PACE, plan=ParallelPlan(sp=2))
    assert 298 <= plain <= 300


def test_a_table_stands_in_while_too_few_steps_were_seen() -> None:
    table = ModeTable(
        sizes=(64, 256, 1024),
        columns={BASE: (30e-3, 40e-3, 80e-3), SHIFT: (10e-3, 30e-3, 100e-3)},
        is_timed=(True, True, True),
        fingerprint="",
        plan="",
        device="",
    )
    nothing_seen = StepPace()
    assert room(used=100, max_step_ms=35.0, pace=nothing_seen, pin=TABLE, table=table) == 156
    assert room(used=100, max_step_ms=35.0, pace=nothing_seen) == 2048


def test_the_other_modes_pace_stands_in_where_only_that_was_seen() -> None:
    only_shift = seen_pace(None, (5.0, 0.1))
    assert room(used=200, threshold=100, max_step_ms=31.0, pace=only_shift) in (59, 60)


seen_lines = st.tuples(st.floats(0.0, 50.0), st.floats(0.001, 1.0))
lines = st.none() | seen_lines
worlds = st.fixed_dictionaries(
    {
        "used": st.integers(0, 600),
        "prefill_tokens": st.sampled_from([0, 16]),
        "budget": st.integers(0, 3000),
        "pace": st.builds(seen_pace, lines, lines),
        "pin": st.sampled_from((*PIN_RULES, *map(ModePin, ENDS))),
        "coin_seed": st.sampled_from([None, 4]),
        "threshold": st.integers(0, 600),
        "table": st.none() | tables(widths=(2,)),
    }
)
caps = st.floats(0.1, 300.0)


@given(world=worlds, cap=st.none() | caps)
def test_a_chunk_never_exceeds_the_budget(world: dict[str, object], cap: float | None) -> None:
    assert 0 <= room(max_step_ms=cap, **world) <= world["budget"]


@given(world=worlds, cap=caps, more=caps)
def test_more_time_never_means_a_smaller_chunk(
    world: dict[str, object], cap: float, more: float
) -> None:
    low, high = sorted((cap, more))
    small = room(max_step_ms=low, **world)
    assert small <= room(max_step_ms=high, **world)


@given(
    used=st.integers(0, 600),
    budget=st.integers(0, 3000),
    pace=st.builds(seen_pace, seen_lines, seen_lines),
    pin=st.sampled_from((*PIN_RULES, *map(ModePin, ENDS))),
    threshold=st.integers(0, 600),
    table=st.none() | tables(widths=(2,)),
    cap=caps,
)
def test_a_step_fits_its_time_in_its_mode_and_no_larger_one_does(
    used: int,
    budget: int,
    pace: StepPace,
    pin: ModePin,
    threshold: int,
    table: ModeTable | None,
    cap: float,
) -> None:
    rule = ModeChooser(plan=SHIFT_PLAN, threshold_tokens=threshold, pin=pin, table=table)

    def fits(num_tokens: int) -> bool:
        limit = pace.max_tokens(rule.choose(num_tokens, 0), cap)
        return limit is None or num_tokens <= limit

    taken = prefill_room(
        used=used,
        prefill_tokens=BLOCK,
        budget=budget,
        max_step_ms=cap,
        block_size=BLOCK,
        chooser=rule,
        pace=pace,
        step_id=0,
    )
    best = next((n for n in range(budget, 0, -1) if fits(used + n)), 0)
    assert taken == best


@given(world=worlds, cap=caps)
def test_a_first_chunk_takes_what_fits_or_else_moves_a_block_at_most(
    world: dict[str, object], cap: float
) -> None:
    assume(world["budget"])
    later = room(max_step_ms=cap, **{**world, "prefill_tokens": BLOCK})
    first = room(max_step_ms=cap, **{**world, "prefill_tokens": 0})
    assert first == later or later < first <= BLOCK
    assert first >= 1
