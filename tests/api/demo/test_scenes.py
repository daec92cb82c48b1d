"""The demo's workloads, and what it tells of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from api.demo.following import Held, device_seconds, held
from api.demo.scenes import ENOUGH, live_scene, paced_day, rush_for, sla_from
from api.demo.story import Act, shares
from api.schemas.serving import PolicyVersionView
from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.attainment import judge
from policies.sla import Sla
from store.models import AckState
from tests.policies.capacity import RATE_OF_ONE_RPS, entry, settings_of, table
from tuner.workload.parse import parse_workload

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("seed", range(30))
def test_a_scene_without_a_trace_has_requests_whatever_the_seed(seed: int) -> None:
    spec = live_scene(None, seed=seed).workload
    assert len(parse_workload(spec, seed=seed)) >= ENOUGH


@pytest.mark.parametrize(("replicas", "carries_rps"), [((1, 2, 4), 8.0), ((1,), 2.0)])
def test_the_load_rises_above_what_the_plan_carries_but_never_above_the_most(
    replicas: tuple[int, ...], carries_rps: float
) -> None:
    known = table(*(entry(n) for n in replicas))
    spec = rush_for(known, settings_of(1).plan)
    rate_rps = float(spec.partition("rate=")[2].partition(",")[0])
    assert rate_rps < carries_rps
    assert (rate_rps > RATE_OF_ONE_RPS) == (len(replicas) > 1)
    load = parse_workload(spec, seed=1)
    assert load.input_tokens.mean() == pytest.approx(known.mean_input_tokens)


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
