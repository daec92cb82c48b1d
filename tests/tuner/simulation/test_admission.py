"""The simulator keeps the door's rule: who is let in, who is turned away, and what it is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.admission import Admission
from engine.spec.measurement import Outcome
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.capacity_table import CapacityTable, CarriedRate
from policies.sla import Sla
from tests.tuner.worlds import SMALL, LinearTimer, open_loop
from tuner.simulation.simulate import (
    Ranks,
    SimulatedEngine,
    SimulationResult,
    ranks_of_one,
    simulate,
)
from tuner.simulation.steering import PlannedChanges, Steering
from tuner.simulation.steering_capacity import CapacitySteering
from tuner.workload.workload import Workload

# One request after the other: about two in a second.
SETTINGS = Settings(caps=Caps(max_num_seqs=1, max_num_batched_tokens=256))
INPUT_TOKENS, OUTPUT_TOKENS = 32, 40
SLA = Sla.parse("p95_ttft_ms<=2500,attainment>=0.9")
URGENT, USUAL = -1, 0


def run(
    workload: Workload, admission: Admission | None, steering: Steering | None = None
) -> SimulationResult:
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=ranks_of_one(ParallelPlan(), Ranks(timer=LinearTimer(), num_kv_blocks=2000)),
        max_model_len=1024,
    )
    return simulate(engine, replace(SETTINGS, admission=admission), workload, steering=steering)


@pytest.fixture(scope="module")
def carried() -> float:
    """Requests per second that the engine finishes when it never rests."""
    result = run(load(100.0, 1.0), None)
    return len(result.measurement.timings) / result.measurement.timings[-1].token_s[-1]


def load(rate_rps: float, seconds: float) -> Workload:
    """Requests at a steady rate, every third one urgent."""
    made = open_loop(
        requests=round(rate_rps * seconds),
        gap_s=1 / rate_rps,
        input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    arrivals = [
        replace(a, priority=USUAL if nth % 3 else URGENT) for nth, a in enumerate(made.arrivals)
    ]
    return replace(made, arrivals=tuple(arrivals))


def test_beyond_what_is_carried_those_let_in_meet_the_sla_that_all_would_miss(
    carried: float,
) -> None:
    workload = load(2 * carried, 60.0)
    flooded = run(workload, None)
    limited = run(workload, Admission(rate_rps=0.9 * carried))
    assert judge(SLA, flooded.measurement).attainment < 0.3
    assert judge(SLA, limited.admitted).attainment == 1.0
    assert judge(SLA, limited.measurement).attainment > 0.4
    num_admitted = len(workload) - len(limited.turned_away)
    assert num_admitted <= 0.9 * carried * 60.0 + Admission(rate_rps=0.9 * carried).burst + 1
    assert num_admitted >= 0.95 * 0.9 * carried * 60.0


def test_the_urgent_are_let_in_and_the_others_share_the_rest(carried: float) -> None:
    workload = load(2 * carried, 60.0)
    result = run(workload, Admission(rate_rps=0.9 * carried))
    refused = [workload.arrivals[number].priority for number in result.turned_away]
    assert refused.count(URGENT) <= 1  # before it was known that there are urgent ones
    assert refused.count(USUAL) > len(workload) / 3


def test_a_load_that_is_carried_is_not_touched(carried: float) -> None:
    workload = load(0.8 * carried, 30.0)
    limited = run(workload, Admission(rate_rps=carried))
    assert not limited.turned_away
    assert limited.measurement == run(workload, None).measurement


def test_a_limit_that_comes_on_the_way_cuts_nobody_who_was_let_in(carried: float) -> None:
    workload = load(2 * carried, 20.0)
    limit = replace(SETTINGS, admission=Admission(rate_rps=1.0, burst_requests=2))
    result = run(workload, None, PlannedChanges([(10.0, limit)]))
    timings = result.measurement.timings
    kept = [t for number, t in enumerate(timings) if number not in result.turned_away]
    assert all(t.outcome is Outcome.COMPLETED and len(t.token_s) >= OUTPUT_TOKENS for t in kept)
    assert all(timings[number].scheduled_s >= 10.0 for number in result.turned_away)


def test_the_slow_loop_sheds_at_the_top_of_its_table_and_stops_when_the_load_is_gone(
    carried: float,
) -> None:
    table = CapacityTable(
        sla=SLA,
        mean_input_tokens=INPUT_TOKENS + 14.0,
        mean_output_tokens=OUTPUT_TOKENS + 1.0,
        entries=(
            CarriedRate(
                settings=SETTINGS, rate_rps=carried, low_rps=0.9 * carried, high_rps=carried
            ),
        ),
    )
    busy, calm = load(2 * carried, 400.0), load(0.3 * carried, 500.0)
    later = [replace(a, arrival_s=a.arrival_s + 400.0) for a in calm.arrivals]
    workload = replace(busy, arrivals=(*busy.arrivals, *later))
    steering = CapacitySteering(table=table, model=SMALL, devices=1, start_s=lambda _: 10.0)
    steered, left = run(workload, None, steering), run(workload, None)
    admissions = [change.change.settings.admission for change in steered.changes]
    assert [a is None for a in admissions] == [False] * (len(admissions) - 1) + [True]
    rates = [a.rate_rps for a in admissions if a is not None]
    assert 0.5 * carried < rates[0] <= 0.9 * carried, "some wait by then, and are worked off"
    assert max(rates) < 2 * carried, "probed, not given up"
    flooded = judge(SLA, left.measurement).attainment
    assert judge(SLA, steered.admitted).attainment > 0.85
    assert judge(SLA, steered.measurement).attainment > flooded + 0.3
