"""The demo's workloads, and what it tells of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from api.demo.following import Held, device_seconds, held
from api.demo.processes import DemoError
from api.demo.scenes import ACT_S, RUSH_S, live_scene, paced_day, sla_from
from api.demo.story import Act, finished_rps, shares
from api.schemas.serving import PolicyVersionView
from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.attainment import judge
from policies.sla import Sla
from store.models import AckState
from tests.policies.capacity import RATE_OF_ONE_RPS, entry, settings_of, table
from tuner.workload.parse import parse_workload

TRACE = Path(__file__).parents[3].parent / "shared/traces/azure2023/AzureLLMInferenceTrace_code.csv"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("seed", range(5))
def test_every_load_of_the_first_scene_has_the_same_lengths(seed: int) -> None:
    scene = live_scene(None)
    loads = [parse_workload(spec, seed=seed) for spec in (scene.busy, scene.at(8.0))]
    assert loads[0].closed is not None
    assert len(loads[1]) == pytest.approx(8 * ACT_S, rel=0.3)
    for load in loads:
        assert load.input_tokens.mean() == pytest.approx(370, rel=0.3)
        assert load.input_tokens.max() <= 1024


@pytest.mark.skipif(not TRACE.exists(), reason="the public traces are not beside this checkout")
def test_the_first_scene_takes_its_lengths_from_a_trace_that_is_given() -> None:
    drawn, from_trace = (
        parse_workload(live_scene(trace).at(8.0), seed=1) for trace in (None, str(TRACE))
    )
    for lengths in ("input_tokens", "output_tokens"):
        mean = getattr(from_trace, lengths).mean()
        assert getattr(drawn, lengths).mean() == pytest.approx(mean, rel=0.2)


def test_a_guess_that_answers_nothing_ends_the_scene_with_a_reason() -> None:
    nothing = Measurement(fidelity=Fidelity.MEASURED, timings=(), driver_lag_ms=Distribution.of(()))
    with pytest.raises(DemoError, match="answered none"):
        finished_rps(nothing)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("replicas", "carries_rps"), [((1, 2, 4), 8.0), ((1,), 2.0)])
def test_the_load_rises_above_what_the_plan_carries_but_never_above_the_most(
    replicas: tuple[int, ...], carries_rps: float, seed: int
) -> None:
    known = table(*(entry(n) for n in replicas))
    spec = live_scene(None).rush(known, settings_of(1).plan, seed)
    rate_rps = len(parse_workload(spec, seed=seed)) / RUSH_S
    assert rate_rps < carries_rps
    assert (rate_rps > RATE_OF_ONE_RPS) == (len(replicas) > 1)


def test_the_plan_of_the_day_carries_its_load_until_it_rises() -> None:
    day = paced_day().beside(table(entry(1), entry(2)), settings_of(1).plan)
    calm, risen, again = (phase.rate_rps for phase in day.phases)
    assert calm == again < RATE_OF_ONE_RPS < risen


def test_the_load_of_the_day_rises_and_falls_again(tmp_path: Path) -> None:
    day = paced_day()
    times = day.load(tmp_path, 1).arrival_s
    edges = np.cumsum([0.0, *(phase.seconds for phase in day.phases)])
    counts, _ = np.histogram(times, edges)
    rates = counts / np.diff(edges)
    assert rates == pytest.approx([phase.rate_rps for phase in day.phases], rel=0.3)
    assert len(times) == counts.sum()


def test_the_sla_is_one_that_the_guess_misses_but_not_by_far() -> None:
    timings = tuple(
        RequestTiming(
            scheduled_s=0.0,
            sent_s=0.0,
            token_s=(wait_s, wait_s + 0.03 * nth),
            prompt_tokens=10,
        )
        for nth, wait_s in enumerate(np.linspace(0.2, 1.2, 50), start=1)
    )
    measured = Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of(())
    )
    report = judge(Sla.parse(sla_from(measured)), measured)
    assert not report.is_met
    assert report.attainment is not None
    assert 0.7 < report.attainment < 0.9
    assert judge(Sla.parse(sla_from(measured, 2.0)), measured).is_met


def version(number: int, devices: int, asked_s: float, in_force_s: float) -> PolicyVersionView:
    return PolicyVersionView(
        engine_id="eng_1",
        version=number,
        document=Settings(plan=ParallelPlan(dp=devices)).to_json(),
        origin="controller",
        reason="",
        created_by="controller",
        created_at=START + timedelta(seconds=asked_s),
        ack_state=AckState.APPLIED,
        ack_message=None,
        ack_changes=None,
        ack_seconds=None,
        ack_transition=None,
        acknowledged_at=START + timedelta(seconds=in_force_s),
    )


def test_devices_count_from_when_they_start_until_they_have_left() -> None:
    versions = [version(3, 2, 160, 170), version(1, 2, -50, -40), version(2, 6, 60, 70)]
    spells = list(held(versions, START))
    assert spells == [
        Held(at_s=-40, devices=2),
        Held(at_s=60, devices=6),
        Held(at_s=170, devices=2),
    ]
    assert device_seconds(spells, 0, 200) == 60 * 2 + 110 * 6 + 30 * 2
    assert device_seconds(spells, 60, 160) == 100 * 6
    assert device_seconds(spells[1:], 0, 100) == 100 * 6


def test_the_share_of_each_mode_is_told_in_percent_most_first() -> None:
    assert shares(Counter({"base": 30, "4x2": 150, "shift": 0, "2x4": 120})) == (
        "4x2 50 %, 2x4 40 %, base 10 %"
    )
    assert shares(Counter()) == ""


def test_who_was_turned_away_is_told_beside_the_attainment_of_those_let_in() -> None:
    timings = [
        RequestTiming(
            scheduled_s=0.0,
            sent_s=0.0,
            token_s=(0.1,) if n < 8 else (),
            prompt_tokens=8,
            outcome=Outcome.COMPLETED if n < 8 else Outcome.ERRORED,
        )
        for n in range(10)
    ]
    measured = Measurement(
        fidelity=Fidelity.MEASURED, timings=tuple(timings), driver_lag_ms=Distribution.of([])
    )
    act = Act(name="rush", settings="tp=1", measurement=measured, steps="")
    assert act.attainment("p95_ttft_ms<=500") == "0.800"
    told = replace(act, refused=2).attainment("p95_ttft_ms<=500")
    assert told == "0.800; 1.000 of those let in, 20% turned away"
