"""The mode table: what it chooses, what a wrong choice costs, and how it is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.table import DEAD_BAND, ModeTable, filled, find_table, store_table
from engine.spec.errors import EngineError
from engine.spec.modes import BASE, ENDS, SHIFT, Mode

MIDDLE = Mode("2x2")
LADDER = (BASE, MIDDLE, SHIFT)


def make_table(*rows: tuple[float, ...], is_timed: tuple[bool, ...] | None = None) -> ModeTable:
    """A table of (tokens, base ms, shift ms) or (tokens, base ms, ms on the rung 2x2, shift ms)."""
    modes = LADDER if rows and len(rows[0]) == 4 else (BASE, SHIFT)
    return ModeTable(
        sizes=tuple(int(row[0]) for row in rows),
        columns={
            mode: tuple(row[1 + nth] * 1e-3 for row in rows) for nth, mode in enumerate(modes)
        },
        is_timed=(True,) * len(rows) if is_timed is None else is_timed,
        fingerprint="f00d",
        plan="sp=4,shift",
        device="cpu",
    )


CROSSING = make_table((8, 10, 5), (16, 10, 7), (32, 11, 11.1), (64, 13, 20), (128, 18, 40))

step_ms = st.floats(0.1, 1000.0)


@st.composite
def tables(draw: st.DrawFn, widths: tuple[int, ...] = (2, 3)) -> ModeTable:
    """With a column of base and one of shift, and one of a rung between where ``widths`` say 3."""
    sizes = sorted(draw(st.sets(st.integers(1, 5000), min_size=1, max_size=12)))
    width = draw(st.sampled_from(widths))
    return make_table(*[(size, *(draw(step_ms) for _ in range(width))) for size in sizes])


def test_each_bucket_runs_in_the_faster_mode_and_in_shift_where_both_are_alike() -> None:
    chosen = [CROSSING.faster(n) for n in (1, 8, 9, 16, 17, 32, 33, 64, 65, 128)]
    assert chosen == [SHIFT] * 6 + [BASE] * 4
    assert CROSSING.largest_shift_tokens == 32
    assert CROSSING.threshold_tokens == 32


def test_a_rung_between_is_taken_where_it_is_fastest_and_where_it_is_allowed() -> None:
    table = make_table((8, 10, 7, 5), (64, 12, 8, 10), (512, 20, 26, 40), (1024, 30, 29.5, 60))
    assert table.modes == (SHIFT, MIDDLE, BASE, MIDDLE)
    assert table.largest_tokens(MIDDLE, 600) == 600
    assert table.largest_tokens(MIDDLE, 500) == 64
    assert table.other_s(MIDDLE, 64) == pytest.approx(10e-3)
    assert table.regret_s(SHIFT, 64) == pytest.approx(2e-3)
    ends = table.only((BASE, SHIFT))
    assert ends.modes == (SHIFT, SHIFT, BASE, BASE)
    assert ends.to_json()["buckets"][1]["2x2_s"] == 8e-3
    with pytest.raises(EngineError, match="'4x1' was not timed"):
        table.only((Mode("4x1"),))


def test_seconds_go_on_in_a_line_beyond_the_largest_size() -> None:
    assert CROSSING.seconds(BASE, 17) == pytest.approx(11e-3)
    assert CROSSING.seconds(BASE, 256) == pytest.approx((18 + 128 * 5 / 64) * 1e-3)
    assert CROSSING.faster(256) == BASE
    falling = make_table((8, 10, 10), (16, 8, 8))
    assert falling.seconds(SHIFT, 64) == pytest.approx(8e-3)
    assert make_table((8, 10, 12)).seconds(SHIFT, 16) == pytest.approx(24e-3)


def test_regret_is_what_the_other_mode_would_have_saved() -> None:
    assert CROSSING.regret_s(BASE, 5) == pytest.approx(5e-3)
    assert CROSSING.regret_s(SHIFT, 100) == pytest.approx(22e-3)
    assert CROSSING.regret_s(SHIFT, 32) == 0.0


@given(table=tables(), tokens=st.integers(1, 10_000))
def test_the_tables_own_choice_is_never_regretted_and_loses_the_dead_band_at_most(
    table: ModeTable, tokens: int
) -> None:
    chosen = table.faster(tokens)
    assert table.regret_s(chosen, tokens) == 0.0
    if tokens <= table.sizes[-1]:
        best_s = min(table.seconds(mode, tokens) for mode in table.columns)
        assert table.seconds(chosen, tokens) <= best_s * (1 + DEAD_BAND) * (1 + 1e-9)


@given(table=tables(), at_most=st.integers(0, 10_000), mode=st.sampled_from(LADDER))
def test_the_largest_step_of_a_mode_is_the_one_that_counting_down_finds(
    table: ModeTable, at_most: int, mode: Mode
) -> None:
    counted = next((n for n in range(at_most, 0, -1) if table.faster(n) == mode), 0)
    assert table.largest_tokens(mode, at_most) == counted


@given(table=tables(), max_step_ms=step_ms, mode=st.sampled_from(ENDS))
def test_every_size_up_to_the_most_that_fit_a_time_takes_no_longer(
    table: ModeTable, max_step_ms: float, mode: Mode
) -> None:
    most = table.max_tokens(mode, max_step_ms)
    fitting = [size for size in table.sizes if most is None or size <= most]
    assert all(table.seconds(mode, size) * 1e3 <= max_step_ms for size in fitting)
    if most is not None:
        next_size = next(size for size in table.sizes if size > most)
        assert table.seconds(mode, next_size) * 1e3 > max_step_ms


@given(table=tables())
def test_no_other_threshold_loses_less_than_the_one_told(table: ModeTable) -> None:
    def loss(threshold: int) -> float:
        modes = [BASE if size > threshold else SHIFT for size in table.sizes]
        pairs = zip(table.sizes, modes, strict=True)
        return sum(
            table.regret_s(mode, size) / table.seconds(table.faster(size), size)
            for size, mode in pairs
        )

    least = min(loss(threshold) for threshold in (0, *table.sizes))
    assert loss(table.threshold_tokens) == pytest.approx(least)


@given(table=tables())
def test_a_table_reads_back_what_it_writes(table: ModeTable) -> None:
    text = json.dumps(table.to_json())
    assert ModeTable.from_json(json.loads(text), where="here") == table


def test_sizes_that_were_not_timed_are_told_apart() -> None:
    table = make_table((8, 10, 5), (16, 12, 9), (32, 16, 17), is_timed=(True, False, True))
    told = [bucket["is_measured"] for bucket in table.to_json()["buckets"]]
    assert (told, table.num_timed) == ([True, False, True], 2)


def test_times_between_timed_sizes_lie_on_their_line_and_those_beyond_go_on_with_the_last() -> None:
    found = filled({8: 10.0, 32: 16.0, 64: 24.0}, [4, 8, 16, 32, 64, 128])
    assert found == pytest.approx((10.0, 10.0, 12.0, 16.0, 24.0, 40.0))


def test_a_stored_table_is_found_by_its_fingerprint_only(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.json"
    assert find_table(path, "f00d") is None
    store_table(CROSSING, path)
    assert find_table(path, "f00d") == CROSSING
    assert find_table(path, "beef") is None
    assert [entry.name for entry in path.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("not json", "cannot be read as a mode table"),
        ("[]", "schema None is not 'mode-table/v1'"),
        ('{"schema": "mode-table/v9"}', "schema 'mode-table/v9'"),
        ('{"schema": "mode-table/v1"}', "'buckets' is missing"),
        ('{"schema": "mode-table/v1", "buckets": 3}', "not a mode table"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name_with_a_way_out(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(EngineError, match=why) as refused:
        find_table(path, "f00d")
    assert str(path) in str(refused.value)
    assert "--mode-table" in str(refused.value)


def test_a_stored_table_is_read_by_whom_the_umask_lets_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    before = os.umask(0o022)
    try:
        store_table(CROSSING, tmp_path / "table.json")
        store_table(CROSSING, tmp_path / "table.json")
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_table_that_cannot_be_stored_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be stored"):
        store_table(CROSSING, tmp_path / "file" / "table.json")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "0 sizes"),
        ([(8, 1, 1), (8, 1, 1)], "ascend"),
        ([(0, 1, 1)], "at least 1"),
        ([(8, 0, 1)], "above 0"),
        ([(8, 1, float("nan"))], "above 0"),
    ],
)
def test_times_that_make_no_table_are_refused(
    rows: list[tuple[int, float, float]], why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        make_table(*rows)


@pytest.mark.parametrize("is_timed", [(), (True,), (False, False)])
def test_a_table_without_a_measured_size_is_refused(is_timed: tuple[bool, ...]) -> None:
    with pytest.raises(EngineError, match="at least one must be"):
        make_table((8, 1, 1), (16, 1, 1), is_timed=is_timed)
