"""What charts and tables of the dashboard make of numbers."""

from __future__ import annotations

import pytest

from api.dashboard import charts, words

TRIALS = [(1.0, 26.0, "tp=1"), (2.0, 40.0, "tp=2")]


@pytest.mark.parametrize(
    ("value", "end"), [(0.0, 1.0), (0.9, 1.0), (5.5, 6.0), (88.0, 100.0), (121.0, 150.0)]
)
def test_an_axis_ends_at_a_round_number(value: float, end: float) -> None:
    assert charts.round_up(value) == end


def test_dots_show_the_bound_and_have_room_beside_the_last_one() -> None:
    made = charts.dots("devices", "ms", {"trials": TRIALS}, bounds={"SLA": 50.0}, none="none")
    assert made["xAxis"]["max"] == 3
    assert (made["yAxis"]["type"], made["yAxis"]["max"]) == ("value", 60.0)
    (line,) = made["series"][0]["markLine"]["data"]
    assert (line["yAxis"], line["name"]) == (50.0, "SLA")


def test_one_far_off_dot_does_not_press_the_others_to_the_ground() -> None:
    far = [*TRIALS, (2.0, 23_808.0, "pp=2")]
    made = charts.dots("devices", "ms", {"trials": far}, bounds={}, none="none")
    assert (made["yAxis"]["type"], made["yAxis"]["max"]) == ("log", 100_000.0)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (4.12, "4.1"), (99.94, "99.9"), (11198.8, "11,199")]
)  # fmt: skip
def test_decimals_stand_where_they_matter(value: float | None, text: str) -> None:
    assert words.number_short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42 s"), (1800, "30 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_length_of_time_has_no_empty_parts(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


def test_a_job_is_called_by_its_model_and_hardware() -> None:
    assert words.job_title({"model_dir": "llama-3.1-8b", "hardware": "2xh200"}) == (
        "llama-3.1-8b on 2xh200"
    )
    assert words.job_title({"model_dir": "/models/tiny/", "hardware": "local"}) == (
        "tiny on this machine"
    )
