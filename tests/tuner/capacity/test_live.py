"""The highest load of a server, whose answers are made up so that its edge is known and no time
passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from policies.points import Estimate
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.capacity.document import live_json, live_lines
from tuner.capacity.live import Drive, LiveSearch, least_requests, most_lag_ms, traffic
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

SLA = Sla.parse("p90_ttft_ms<=300")
LOAD = parse_workload("poisson:rate=20,input=512,output=4,requests=60", seed=0)
# The server carries so many requests per second within the SLA, and is too slow beyond.
EDGE_RPS = 33.0


def driven(lag_ms: Callable[[Workload], float] = lambda _: 0.0) -> Drive:
    """A server with an edge, and a driver that is late with some loads."""

    def drive(load: Workload, _draw: int, _should_stop: Callable[[], bool]) -> Measurement:
        ttft_s = 0.05 if (load.rate_rps or 0.0) <= EDGE_RPS else 0.5
        timings = tuple(
            RequestTiming(
                scheduled_s=a.arrival_s,
                sent_s=a.arrival_s,
                token_s=(a.arrival_s + ttft_s,),
                prompt_tokens=a.input_tokens,
            )
            for a in load.arrivals
        )
        return Measurement(
            fidelity=Fidelity.MEASURED,
            timings=timings,
            driver_lag_ms=Distribution.of([lag_ms(load)]),
        )

    return drive


def search(drive: Drive, *, seconds: float = 60.0, probes: int = 12) -> LiveSearch:
    return LiveSearch(
        workload=LOAD,
        sla=SLA,
        drive=drive,
        estimates=lambda run, _: {
            key: Estimate.exact(value) for key, value in flat_metrics(run, SLA).items()
        },
        seconds=seconds,
        most_probes=probes,
    )


def test_the_load_found_is_that_beyond_which_the_server_is_too_slow() -> None:
    live = search(driven()).run()
    found = live.found
    assert found.factor is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.factor <= found.high
    # Each part of the traffic has its own rate, so the edge is blurred.
    assert found.factor * 20 == pytest.approx(EDGE_RPS, rel=0.25)
    assert found.binding == SLA.constraints[0]
    assert len(found.probes) == 12
    assert not live.late


def test_a_late_driver_makes_no_verdict_and_its_rate_is_told() -> None:
    rate = 30.0
    slow = search(driven(lambda load: 100.0 if (load.rate_rps or 0.0) > rate else 0.0))
    live = slow.run()
    assert live.found.is_at_least
    assert live.found.factor is not None
    assert live.found.factor * 20 <= rate
    assert live.undrivable == min(late.factor for late in live.late)
    document = {"live": live_json(live, LOAD)}
    told = " ".join(live_lines(document))
    assert f"{len(live.late)} probes do not count" in told
    assert "this machine is too slow to send" in told


def test_a_search_that_is_stopped_tells_what_was_found_so_far() -> None:
    begun, seen = search(driven()), []
    begun.on_probe = seen.append
    begun.should_stop = lambda: len(seen) == 3
    live = begun.run()
    assert len(live.found.probes) == len(seen) == 3
    assert live.seconds < begun.seconds


def test_a_probe_cut_by_the_end_does_not_count_but_tells_what_ended_in_its_time() -> None:
    drive = driven()
    assert search(drive).run().cut_rps is None
    ended: list[int] = []

    def cut(load: Workload, draw: int, should_stop: Callable[[], bool]) -> Measurement:
        run = drive(load, draw, should_stop)
        time.sleep(0.1)
        ended.append(len(run.timings) - 1)
        last = replace(run.timings[-1], outcome=Outcome.CUT)
        return replace(run, timings=(*run.timings[:-1], last))

    live = search(cut).run()
    assert live.found.factor is None
    assert not live.found.probes
    assert live.cut_rps is not None
    assert ended[0] / live.seconds <= live.cut_rps <= ended[0] / 0.1


def test_a_probe_is_the_same_part_of_the_traffic_at_every_rate_with_enough_requests() -> None:
    slow, fast = (traffic(LOAD, at, 3, seconds=1.0, sla=SLA) for at in (0.5, 4.0))
    assert len(slow) == least_requests(SLA) == 25
    assert len(fast) == round(4 * (LOAD.rate_rps or 0.0) + 0.5)
    assert fast.arrivals[0].arrival_s == 0
    assert fast.rate_rps == pytest.approx(4 * (LOAD.rate_rps or 0.0), rel=0.4)
    closed = parse_workload("closed:concurrency=4,input=8,output=4,requests=16", seed=0)
    few = traffic(closed, 0.5, 0, seconds=1.0, sla=SLA)
    assert few.closed is not None
    assert (few.closed.concurrency, few.closed.limit_s) == (2, 1.0)


def test_what_cannot_be_found_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TunerError, match="seconds are too few"):
        search(driven(), seconds=2.0)
    assert least_requests(Sla.parse("p99_ttft_ms<=300")) == 250
    assert most_lag_ms(Sla.parse("p99_ttft_ms<=100,p99_e2e_ms<=9000")) == 10
    assert most_lag_ms(Sla.parse("p99_tpot_ms<=5")) == 20
