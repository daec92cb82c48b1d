"""Load bands: which one a load belongs to, and the document that carries them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.errors import PolicyInputError
from policies.points import Estimate
from policies.schedule import LoadBand, Schedule

PLAN = ParallelPlan(sp=2, shift=True)


def band(
    low: float, high: float, *, mix: tuple[float, float] = (500, 50), seqs: int = 8
) -> LoadBand:
    return LoadBand(
        rate_rps_low=low,
        rate_rps_high=high,
        mean_input_tokens=mix[0],
        mean_output_tokens=mix[1],
        settings=Settings(
            plan=PLAN, threshold_tokens=256, caps=Caps(max_num_seqs=seqs, max_step_ms=40)
        ),
        headroom=0.2,
    )


SCHEDULE = Schedule(
    bands=(band(0, 2), band(2, 6, seqs=16), band(6, math.inf, seqs=32), band(0, 9, mix=(20, 900))),
)


def test_a_rate_belongs_to_the_band_that_holds_it_and_its_low_end_counts() -> None:
    rates = (0.0, 1.99, 2.0, 5.0, 6.0, 1e6)
    assert [SCHEDULE.find_band(rate, 500, 50) for rate in rates] == [0, 0, 1, 1, 2, 2]


def test_the_length_mix_closest_by_ratio_is_chosen_first() -> None:
    assert SCHEDULE.find_band(1.0, 40, 600) == 3
    assert SCHEDULE.find_band(100.0, 40, 600) == 3
    assert SCHEDULE.find_band(1.0, 300, 60) == 0


def test_the_document_reads_back_the_same_and_is_plain_json() -> None:
    text = json.dumps(SCHEDULE.to_json(), allow_nan=False)
    assert Schedule.from_json(json.loads(text)) == SCHEDULE


def test_what_a_request_alone_takes_is_carried_and_may_be_missing() -> None:
    alone = {"p95_ttft_ms": Estimate(value=40.0, low=30.0, high=math.inf)}
    schedule = replace(SCHEDULE, alone=alone)
    document = json.loads(json.dumps(schedule.to_json(), allow_nan=False))
    assert Schedule.from_json(document) == schedule
    del document["alone"]
    assert Schedule.from_json(document) == SCHEDULE


def test_settings_that_leave_the_mode_to_the_measured_table_are_carried() -> None:
    measured = replace(SCHEDULE.bands[0].settings, pin=TABLE)
    schedule = Schedule(bands=(replace(SCHEDULE.bands[0], settings=measured),))
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ((), "at least one"),
        ((band(0, 2), band(3, 4)), "must meet"),
        ((band(0, 2), band(1, 4)), "must meet"),
    ],
)
def test_gaps_overlaps_and_emptiness_are_refused(bands: tuple[LoadBand, ...], message: str) -> None:
    with pytest.raises(PolicyInputError, match=message):
        Schedule(bands=bands)


def test_bands_of_two_plans_are_refused() -> None:
    other = replace(band(2, 4), settings=Settings(plan=ParallelPlan(tp=2)))
    with pytest.raises(PolicyInputError, match=r"2 plans \(sp=2,shift, tp=2\)"):
        Schedule(bands=(band(0, 2), other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "schedule/v9"}, "schedule/v9"),
        ({"bands": [{}]}, "missing"),
        ({"bands": 5}, "schedule: "),
        ({"alone": ["p50_ttft_ms"]}, "schedule: "),
        ({"alone": {"p50_ttft_ms": {"value": "fast", "low": 1, "high": 2}}}, "schedule: "),
    ],
)
def test_a_document_that_cannot_be_read_says_why(change: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyInputError, match=message):
        Schedule.from_json(SCHEDULE.to_json() | change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": {"tp": 0}}, "tp=0"),
        ({"plan": {"ep": 2}}, "/plan/ep: unknown knob"),
        ({"plan": {"tp": 2}, "mode": "shift"}, "needs a plan with Shift on"),
    ],
)
def test_settings_of_a_band_that_cannot_be_are_refused(
    settings: dict[str, object], message: str
) -> None:
    document = SCHEDULE.to_json()
    document["bands"][0]["settings"] = settings
    with pytest.raises(PolicyInputError, match=message):
        Schedule.from_json(document)


@pytest.mark.parametrize("field", ["rate_rps_low", "rate_rps_high", "headroom"])
@pytest.mark.parametrize("value", ["fast", [], {}, 10**400])
def test_a_number_of_a_band_that_is_none_is_refused(field: str, value: object) -> None:
    document = SCHEDULE.to_json()
    document["bands"][0][field] = value
    with pytest.raises(PolicyInputError, match="schedule: "):
        Schedule.from_json(document)


def test_a_band_with_its_ends_swapped_is_refused() -> None:
    with pytest.raises(PolicyInputError, match=r"5\.\.2"):
        band(5, 2)
