"""Time of a job: how it is asked for, and when a live run is ended before its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.measurement import Fidelity, Outcome, RequestTiming
from engine.spec.settings import Settings
from policies.attainment import judge
from policies.sla import Sla
from tests.engine.paced import ConstantTimer
from tuner.load.live import LiveEngine
from tuner.search.budget import TimeBudget, used_text
from tuner.search.costs import Cost, Level, Meter, Spent, costs_json
from tuner.search.watch import LiveWatch
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

SLA = Sla.parse("p90_ttft_ms<=100")


@pytest.mark.parametrize(
    ("text", "seconds", "is_of_devices"),
    [
        ("device_minutes=30", 1800, True),
        ("device_hours=0.5", 1800, True),
        (" device_seconds = 90 ", 90, True),
        ("minutes=2.5", 150, False),
    ],
)
def test_time_of_devices_or_by_the_clock_is_asked_for_in_seconds_minutes_or_hours(
    text: str, seconds: float, is_of_devices: bool
) -> None:
    assert TimeBudget.parse(text) == TimeBudget(seconds=seconds, is_of_devices=is_of_devices)


@pytest.mark.parametrize(
    "text", ["30", "days=30", "device_minutes", "device_minutes=x", "device_hours=-1", "",
             "device_seconds=nan", "device_seconds=0", "device_hours=1e99"]
)  # fmt: skip
def test_what_is_no_time_is_refused_with_the_form_that_is(text: str) -> None:
    with pytest.raises(TunerError, match="not of the form device_minutes=30 or minutes=5"):
        TimeBudget.parse(text)


def test_what_does_not_fit_says_what_is_left_and_what_it_needs() -> None:
    budget = TimeBudget.parse("device_minutes=2")
    assert budget.why_not(100, 100) is None
    assert budget.why_not(25, 40) == (
        "not run: the budget has 25 device seconds left and it needs 40"
    )
    assert "has 0 device seconds" in str(budget.why_not(-3, 1))
    assert "has 25 seconds left" in str(TimeBudget.parse("minutes=2").why_not(25, 40))


def test_by_the_clock_devices_do_not_count_and_simulation_does() -> None:
    probed = Cost(level=Level.PROBED, seconds=2.0, device_seconds=8.0)
    simulated = Cost(level=Level.SIMULATED, seconds=3.0)
    of_devices, by_clock = TimeBudget.parse("device_minutes=2"), TimeBudget.parse("minutes=2")
    assert (of_devices.held_s(2.0, 4), by_clock.held_s(2.0, 4)) == (8.0, 2.0)
    assert (of_devices.clock_s(2), by_clock.clock_s(2)) == (60.0, 120.0)
    assert [of_devices.taken_s(cost) for cost in (probed, simulated)] == [8.0, 0.0]
    assert [by_clock.taken_s(cost) for cost in (probed, simulated)] == [2.0, 3.0]
    spent = Spent(seconds=30.0, device_seconds=60.0)
    assert [b.taken_s(spent) for b in (of_devices, by_clock)] == [60.0, 30.0]
    told = [used_text({"asked": "x", **b.used_json(30.0)}) for b in (of_devices, by_clock)]
    assert told == ["budget x: 30 of 120 device seconds used", "budget x: 30 of 120 seconds used"]


def ended(ttft_s: float, outcome: Outcome = Outcome.COMPLETED) -> RequestTiming:
    stamps = (ttft_s, ttft_s + 0.02)
    return RequestTiming(
        scheduled_s=0.0, sent_s=0.0, token_s=stamps, prompt_tokens=8, outcome=outcome
    )


def test_a_run_is_hopeless_once_more_are_late_or_failed_than_the_sla_allows_of_all() -> None:
    watch = LiveWatch(SLA, 21)  # two of them may be late
    for timing in (ended(0.05), ended(0.2), ended(0.01, Outcome.TIMED_OUT), ended(0.05)):
        watch.hear(timing)
    assert not watch.should_stop()
    watch.hear(ended(0.01, Outcome.CUT))
    assert not watch.should_stop(), "what the run itself cut off is not late"
    watch.hear(ended(0.3))
    assert watch.should_stop()
    assert watch.stopped == (
        "stopped: 3 of the first 5 requests miss p90_ttft_ms<=100; at most 2 of all 21 may"
    )


def test_a_hopeless_live_run_is_stopped_and_its_part_shows_the_miss(tmp_path: Path) -> None:
    create_model(tmp_path / "model", preset="tiny")
    config = EngineConfig(
        model_dir=tmp_path / "model", executor=ExecutorKind.SIMULATED, num_kv_blocks=512
    )
    strict = Sla.parse("p95_ttft_ms<=0.001")
    watch = LiveWatch(strict, 200)
    with LiveEngine(config, timer_factory=ConstantTimer) as engine:
        found = engine.measure(
            Settings(),
            parse_workload("closed:concurrency=1,input=8,output=4,requests=200", seed=0),
            seed=0,
            timeout_s=60.0,
            fidelity=Fidelity.PROBED,
            on_ended=watch.hear,
            should_stop=watch.should_stop,
        )
    assert found.count(Outcome.COMPLETED) == 11
    assert "at most 10 of all 200 may" in str(watch.stopped)
    assert not judge(strict, found).is_met


def test_a_run_whose_numbers_are_wanted_goes_on_however_late_it_is() -> None:
    watch = LiveWatch(None, 3)
    for _ in range(3):
        watch.hear(ended(9.0))
    assert not watch.should_stop()


def test_a_run_ends_when_its_device_time_is_used_and_cancelling_is_no_reason() -> None:
    spent = LiveWatch(SLA, 3, allowed_s=0.0)
    assert spent.should_stop()
    assert spent.stopped == "stopped: the budget had 0 s left for it, and they are used"
    cancelled = LiveWatch(SLA, 3, is_cancelled=lambda: True)
    assert cancelled.should_stop()
    assert cancelled.stopped is None


def test_costs_add_up_by_level_and_devices_are_held_only_where_they_were() -> None:
    meter = Meter()
    with pytest.raises(ValueError, match="no"), meter.timing(Level.PROBED, num_devices=4):
        raise ValueError("no")
    with meter.timing(Level.SIMULATED):
        pass
    probed, simulated = meter.taken()
    assert probed.device_seconds == 4 * probed.seconds > 0
    assert simulated.device_seconds == 0
    assert meter.taken() == ()
    more = Cost(level=Level.PROBED, seconds=2.0, device_seconds=8.0)
    rows = {row["level"]: row for row in costs_json([probed, simulated, more])}
    assert list(rows) == ["simulated", "probed"]
    assert rows["probed"]["runs"] == 2
    assert rows["probed"]["device_seconds"] == pytest.approx(8 + probed.device_seconds)
