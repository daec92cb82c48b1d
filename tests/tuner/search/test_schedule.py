"""The schedule: settings per load band that never are a worse place to be caught in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.capacity_table import CarriedRate
from policies.schedule import Schedule
from policies.sla import Sla
from tests.tuner.worlds import SMALL, LinearTimer
from tuner.search.schedule import (
    RATE_FACTORS,
    SAFE_HEADROOM,
    build_schedule,
    fewest_changes,
)
from tuner.search.simulator import Simulator
from tuner.spec.space import Space
from tuner.workload.parse import parse_workload
from tuner.workload.slices import at_rate, head

SLA = Sla.parse("p95_ttft_ms<=400,p99_itl_ms<=60")
LOAD = "poisson:rate=16,requests=240,seconds=60,input=110,output=20"
PLAN = ParallelPlan()
SPACE = Space(plans=(PLAN,), pruned=(), num_seqs=(32,), batched_tokens=(128, 256, 512, 1024))


def simulator() -> Simulator:
    return Simulator(
        model=SMALL,
        sla=SLA,
        timer_of=lambda plan: LinearTimer(),
        blocks_of=lambda plan: 2000,
        block_size=16,
        max_model_len=1024,
        interval=0.1,
    )


def settings(tokens: int) -> Settings:
    return Settings(plan=PLAN, caps=Caps(max_num_seqs=32, max_num_batched_tokens=tokens))


@cache
def around(tokens: int) -> tuple[Simulator, Schedule]:
    """The schedule around settings of so many tokens a step, and what has simulated it."""
    found = simulator()
    workload = parse_workload(LOAD, seed=0)
    return found, build_schedule(found, SPACE, settings(tokens), workload, SLA)


@pytest.fixture
def cautious() -> Schedule:
    """Around settings of 128 tokens a step."""
    return around(128)[1]


@pytest.mark.parametrize("tokens", [128, 512])
def test_no_band_has_settings_that_are_worse_than_the_recommended_ones_under_more_load(
    tokens: int,
) -> None:
    best, workload = settings(tokens), parse_workload(LOAD, seed=0)
    found, schedule = around(tokens)
    rate = workload.rate_rps or 0.0
    for band in schedule.bands:
        chosen = replace(best, caps=band.settings.caps)
        for factor in RATE_FACTORS:
            if factor * rate > band.rate_rps_high:
                load = at_rate(workload, factor)
                mine, theirs = (found.quick_point(s, load) for s in (chosen, best))
                if mine.headroom(SLA) < min(theirs.headroom(SLA), SAFE_HEADROOM):
                    assert theirs.headroom(SLA) < 0
                    shares = [p.metrics["attainment"].value for p in (mine, theirs)]
                    assert shares[0] >= shares[1]


def test_bands_cover_every_rate_and_the_top_one_knows_three_times_the_load(
    cautious: Schedule,
) -> None:
    """128 tokens a step keep gaps short, and cannot carry 48 requests a second."""
    assert cautious.bands[0].rate_rps_low == 0.0
    assert cautious.bands[-1].rate_rps_high == math.inf
    assert cautious.bands[-1].settings.caps.max_num_batched_tokens > 128


def carried(tokens: int, low_rps: float, fidelity: Fidelity) -> CarriedRate:
    return CarriedRate(
        settings=settings(tokens), rate_rps=40.0, low_rps=low_rps, high_rps=45.0, fidelity=fidelity
    )


@pytest.mark.parametrize(
    ("low_rps", "fidelity", "top_tokens"),
    [
        pytest.param(35.0, Fidelity.MEASURED, 256, id="what_was_measured_to_carry_more"),
        pytest.param(8.0, Fidelity.MEASURED, 128, id="else_what_was_recommended"),
        pytest.param(35.0, Fidelity.SIMULATED, 1024, id="simulated_as_all_others"),
    ],
)
def test_above_the_own_rate_settings_that_ran_stand_before_those_that_never_did(
    low_rps: float, fidelity: Fidelity, top_tokens: int
) -> None:
    """By simulation 1,024 tokens a step carry most."""
    workload = parse_workload(LOAD, seed=0)
    rate_rps = workload.rate_rps or 0.0
    schedule = build_schedule(
        simulator(),
        replace(SPACE, batched_tokens=(128, 1024)),
        settings(128),
        workload,
        SLA,
        carried=carried(256, low_rps, fidelity),
    )
    assert schedule.bands[-1].settings == settings(top_tokens)
    for factor in RATE_FACTORS:
        if factor > 1 and fidelity is Fidelity.MEASURED:
            nth = schedule.find_band(factor * rate_rps, *schedule.bands[0].mix)
            assert schedule.bands[nth].settings == settings(top_tokens)


def test_the_schedule_knows_what_a_request_alone_takes_at_best(cautious: Schedule) -> None:
    """With 128 tokens a step a prompt of 110 is one step, and so it is with any more."""
    alone = cautious.alone
    p50 = alone["p50_ttft_ms"]
    step_ms = 10 + 0.1 * 110 + 1
    assert p50.value == pytest.approx(step_ms, rel=0.1)
    assert p50.low < p50.value < p50.high
    workload = head(parse_workload(LOAD, seed=0), 200)
    loaded = simulator().quick_point(settings(512), workload).metrics
    assert all(alone[key].value <= loaded[key].value for key in alone)
    assert "p95_itl_ms" in alone
    assert "attainment" not in alone


def test_of_a_closed_loop_too_a_request_alone_shares_no_step() -> None:
    workload = parse_workload("closed:concurrency=16,input=110,output=20,requests=60", seed=0)
    space = replace(SPACE, batched_tokens=(256,))
    alone = build_schedule(simulator(), space, settings(256), workload, SLA).alone
    assert alone["p99_tpot_ms"].value == pytest.approx(10 + 0.1, rel=0.01)


CHOICES = [settings(tokens) for tokens in (128, 256, 512, 1024)]
scores = st.dictionaries(st.sampled_from(CHOICES), st.floats(-1, 1), min_size=1)


@given(st.lists(scores, min_size=1, max_size=6))
@hypothesis_settings(max_examples=60, deadline=None)
def test_settings_change_from_rate_to_rate_only_where_none_are_good_enough_for_both(
    good_enough: list[dict[Settings, float]],
) -> None:
    chosen = fewest_changes(good_enough, CHOICES[0])
    assert len(chosen) == len(good_enough)
    assert all(own in known for own, known in zip(chosen, good_enough, strict=True))
    fewest = min(_changes(each) for each in product(*good_enough))
    assert _changes(chosen) == fewest


def _changes(chosen: Sequence[Settings]) -> int:
    return sum(a != b for a, b in pairwise(chosen))
