"""The highest load within an SLA: on a made-up engine whose capacity is known, and simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Distribution, Fidelity, Measurement, RequestTiming
from engine.spec.plan import parse_plan
from engine.spec.settings import Settings
from policies.sla import Sla
from tuner.capacity.document import answer_json, capacity_json, capacity_lines
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.search import bracket, find_capacity, fit_falling
from tuner.described.parse import describe_node
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload


def asked(workload: str, sla: str) -> CapacityQuestion:
    node = describe_node(model="llama-3.1-8b", hardware="1xh100", max_model_len=4096)
    served = Settings(plan=parse_plan("tp=1").plan, caps=node.backend.default_caps)
    return CapacityQuestion(
        settings=served,
        run_on=lambda load, scale, show: node.simulate(
            served, load, step_scale=scale, on_progress=show
        ),
        workload=parse_workload(workload, seed=0),
        sla=Sla.parse(sla),
        interval=node.interval,
    )


def test_a_least_load_that_is_met_too_narrowly_is_not_told_as_missed() -> None:
    least = {"rate_rps": None, "concurrency": 1, "sla_probability": 0.61}
    document = {
        "sla": "p95_ttft_ms<=500",
        "min_probability": 0.8,
        "capacity": {"load": None, "binding": "p95_ttft_ms<=500"},
        "rates": [least | {"metrics": {"p95_ttft_ms": 480.0}}],
    }
    (told,) = capacity_lines(document)
    assert told == (
        "no load meets p95_ttft_ms<=500 with P of at least 0.8: at 1 client its bounds are met, "
        "but with P 0.61 only; binding is p95_ttft_ms<=500"
    )
    document["rates"] = [least | {"metrics": {"p95_ttft_ms": 501.0}}]
    assert "it is missed at 1 client already" in capacity_lines(document)[0]
    document["rates"] = [least | {"metrics": {"p95_ttft_ms": 480.0}}]
    document["capacity"] = {"load": None, "binding": None}
    assert capacity_lines(document)[0].endswith("missed at 1 client already, by requests that fail")


@given(edge=st.floats(1e-3, 500), start=st.floats(0.01, 100))
def test_a_bracket_holds_the_edge_wherever_it_starts(edge: float, start: float) -> None:
    good, bad = bracket(lambda factor: factor <= edge, (1e-4, 1000), start=start, ratio=1.05)
    assert good is not None
    assert bad is not None
    assert good <= edge < bad <= 1.05 * good


def test_a_bracket_is_open_where_all_or_nothing_passes() -> None:
    assert bracket(lambda _: True, (0.1, 10)) == (10, None)
    assert bracket(lambda _: False, (0.1, 10)) == (None, 0.1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_fit_never_rises(values: list[float]) -> None:
    fitted = fit_falling(np.arange(len(values), dtype=np.float64), np.array(values))
    assert (np.diff(fitted) <= 1e-12).all()
    assert fitted.mean() == pytest.approx(np.mean(values))


def test_the_capacity_holds_below_and_is_missed_above() -> None:
    question = asked(
        "poisson:rate=40,input=512,output=16,requests=80", "p95_ttft_ms<=300,p95_tpot_ms<=30"
    )
    told: list[tuple[int, int]] = []
    found = find_capacity(
        question, num_draws=2, on_probe=lambda done, all_of_them: told.append((done, all_of_them))
    )
    assert [done for done, _ in told] == list(range(1, len(found.probes) + 1))
    assert all(done <= expected for done, expected in told)
    assert told[-1][0] == told[-1][1], "what is left was known at the end"
    assert found.factor is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.factor <= found.high
    assert found.binding in question.sla.per_run
    below = [p.chance for p in found.probes if p.factor < 0.85 * found.factor]
    above = [p.chance for p in found.probes if p.factor > 1.15 * found.factor]
    assert below
    assert above
    assert min(below) > 0.8 > max(above)
    document = capacity_json(
        found,
        workload=question.workload,
        sla=question.sla,
        settings=question.settings,
        seed=0,
        title="t",
        origin={},
    )
    rate = question.workload.rate_rps
    assert rate is not None
    assert document["capacity"]["load"]["rate_rps"] == pytest.approx(found.factor * rate)
    assert "binding: " in " ".join(capacity_lines(document))
    looser = find_capacity(
        replace(question, sla=Sla.parse("p95_ttft_ms<=600,p95_tpot_ms<=60")), num_draws=2
    )
    assert looser.factor is not None
    assert looser.factor > found.factor


@dataclass(frozen=True)
class Told:
    """What a made-up engine tells of a run."""

    measurement: Measurement


def answered(load: Workload, ttft_s: float) -> Told:
    """Every request has its first token after ``ttft_s``, and another one soon."""
    timings = tuple(
        RequestTiming(
            scheduled_s=a.arrival_s,
            sent_s=a.arrival_s,
            token_s=(a.arrival_s + ttft_s, a.arrival_s + ttft_s + 0.01),
            prompt_tokens=a.input_tokens,
        )
        for a in load.arrivals
    )
    lag = Distribution.of([0.0])
    return Told(Measurement(fidelity=Fidelity.SIMULATED, timings=timings, driver_lag_ms=lag))


@pytest.mark.parametrize(("first_rps", "others_rps"), [(40.0, 12.0), (12.0, 40.0)])
def test_the_capacity_is_that_of_most_draws_where_the_first_was_another(
    first_rps: float, others_rps: float
) -> None:
    question = asked("poisson:rate=20,input=512,input_cv=1,output=2,requests=80", "p95_ttft_ms<=50")
    first = question.workload.arrivals[0]

    def run_on(load: Workload, *_: object) -> Told:
        is_first = load.arrivals[0].input_tokens == first.input_tokens
        is_carried = (load.rate_rps or 0.0) <= (first_rps if is_first else others_rps)
        return answered(load, 0.01 if is_carried else 1.0)

    found = find_capacity(replace(question, run_on=run_on), num_draws=8)
    rate = question.workload.rate_rps
    assert rate is not None
    assert found.factor is not None
    assert found.factor * rate == pytest.approx(others_rps, rel=0.15)
    assert not found.is_at_least


def test_an_sla_that_one_request_misses_alone_has_no_capacity() -> None:
    question = asked("closed:concurrency=8,input=512,output=16,requests=32", "p95_tpot_ms<=0.5")
    found = find_capacity(question, num_draws=2)
    assert found.factor is None
    assert str(found.binding) == "p95_tpot_ms<=0.5"


def test_clients_are_whole_ones_and_the_cliff_is_looked_for_at_one_more() -> None:
    """Ten per cent more than 7 clients are 7, and an end between 7 and 8 was told as 8."""
    question = asked("closed:concurrency=8,input=512,output=2,requests=40", "p95_ttft_ms<=50")

    def run_on(load: Workload, *_: object) -> Told:
        assert load.closed is not None
        # Half of the draws carry 8 clients, so that P crosses between 7 and 8.
        most = 8 if load.arrivals[0].input_tokens % 2 else 7
        return answered(load, 0.01 if load.closed.concurrency <= most else 1.0)

    arrivals = tuple(
        replace(a, input_tokens=512 + i % 2) for i, a in enumerate(question.workload.arrivals)
    )
    question = replace(
        question, run_on=run_on, workload=replace(question.workload, arrivals=arrivals)
    )
    found = find_capacity(question, num_draws=4)
    told = answer_json(found, question.workload)
    assert [told[end]["concurrency"] for end in ("load", "low")] == [7, 7]
    assert told["high"]["concurrency"] in (7, 8)
    assert told["cliff"]["is_cliff"]


def test_requests_that_come_at_once_have_no_rate() -> None:
    question = asked("poisson:rate=4,input=64,output=4,requests=1", "p95_ttft_ms<=300")
    with pytest.raises(TunerError, match="have no rate"):
        find_capacity(question)
