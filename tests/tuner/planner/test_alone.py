"""What single requests say of a plan: never more than a whole simulation bears out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.plan import parse_plan
from policies.report import flat_metrics
from policies.sla import Sla
from tests.tuner.worlds import open_loop
from tuner.capacity.probe import CapacityQuestion
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.planner.alone import SLACK, alone_metrics, alone_reason
from tuner.planner.dependable import dependable_under
from tuner.planner.explore import explore
from tuner.planner.fitting import plan_settings
from tuner.planner.question import Question
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Arrival, Workload, WorkloadSource

BOUNDS = "p50_ttft_ms<=1,p95_ttft_ms<=1,ttft_ms<=1,p50_tpot_ms<=1,p95_itl_ms<=1"


@pytest.fixture(scope="module")
def node() -> Node:
    return describe_node(
        model="llama-3.1-70b", hardware="4xh200", dtype="bf16", backend="gearshift"
    )


@pytest.mark.parametrize("backend", ["gearshift", "vllm", "arctic"])
@pytest.mark.parametrize("plan_text", ["tp=4", "dp=2,tp=2", "pp=2,tp=2", "sp=2,tp=2,shift"])
def test_no_load_is_served_faster_than_single_requests(backend: str, plan_text: str) -> None:
    node = describe_node(model="llama-3.1-70b", hardware="4xh200", dtype="bf16", backend=backend)
    plan, sla = parse_plan(plan_text).plan, Sla.parse(BOUNDS)
    load = parse_workload(
        "gamma:rate=3,cv=2,input=900,input_cv=1.5,output=6,output_cv=1,requests=40", seed=4
    )
    options = plan_settings(plan, node.timer(plan), node.backend.default_caps)
    least = alone_metrics(node, options, load, sla, seed=0)
    assert set(least) == {c.key for c in sla.constraints}
    assert least["p50_ttft_ms"] < least["p95_ttft_ms"] < least["ttft_ms"]
    for settings in options[:3]:
        flat = flat_metrics(node.simulate(settings, load).measurement, sla)
        for key, value in least.items():
            assert value / (1 + SLACK) <= flat[key], (settings, key)


def test_one_long_prompt_in_many_does_not_condemn_a_plan(node: Node) -> None:
    arrivals = tuple(
        Arrival(arrival_s=2.5 * i, input_tokens=30_000 if i == 70 else 200, output_tokens=2)
        for i in range(200)
    )
    source = WorkloadSource(spec="test", seed=0, sha256="", rows=200, span_s=500.0)
    load = Workload(arrivals=arrivals, source=source)
    sla = Sla.parse("p99_ttft_ms<=1000")
    found = explore(Question(node=node, workload=load, sla=sla, seed=0), parse_plan("tp=4").plan)
    assert found.reason is None
    assert any(t.point.is_met(sla.constraints[0]) for t in found.whole)
    strict = Sla.parse("ttft_ms<=1000")
    least = alone_metrics(node, [t.settings for t in found.whole], load, strict, seed=0)
    assert "with the engine to itself: ttft_ms<=1000" in str(alone_reason(least, strict))


def test_nothing_is_said_of_means_and_whole_requests(node: Node) -> None:
    plan = parse_plan("tp=4").plan
    options = plan_settings(plan, node.timer(plan), node.backend.default_caps)
    load = open_loop(requests=20, gap_s=1.0)
    sla = Sla.parse("mean_ttft_ms<=1,mean_tpot_ms<=1,p95_e2e_ms<=1,throughput_tokens_per_s>=1")
    assert alone_metrics(node, options, load, sla, seed=0) == {}
    assert alone_reason({}, sla) is None


def test_a_closed_loop_that_ends_by_time_is_held_to_its_shortest_prompt(node: Node) -> None:
    plan = parse_plan("tp=4").plan
    options = plan_settings(plan, node.timer(plan), node.backend.default_caps)
    sla = Sla.parse("p50_ttft_ms<=1")
    spec = "closed:concurrency=4,input=2000,input_cv=1,output=4,requests=50"
    all_sent = parse_workload(spec, seed=1)
    timed = parse_workload(f"{spec},seconds=5", seed=1)
    assert timed.closed is not None
    assert timed.closed.limit_s == 5
    least = [
        alone_metrics(node, options, load, sla, seed=0)["p50_ttft_ms"] for load in (timed, all_sent)
    ]
    assert least[0] < least[1]


@pytest.mark.parametrize("is_found", [True, False])
def test_beginnings_that_a_prefix_cache_holds_condemn_no_plan(node: Node, is_found: bool) -> None:
    node = replace(node, backend=replace(node.backend, prefix_cache=is_found))
    # A document of 8,192 tokens that is asked 40 questions.
    document = tuple(range(16))
    arrivals = tuple(
        Arrival(arrival_s=0.3 * i, input_tokens=8400, output_tokens=2, hash_ids=document)
        for i in range(40)
    )
    source = WorkloadSource(spec="test", seed=0, sha256="", rows=40, span_s=11.7)
    load = Workload(arrivals=arrivals, source=source)
    sla = Sla.parse("p90_ttft_ms<=300")
    plan = parse_plan("tp=4").plan
    found = explore(Question(node=node, workload=load, sla=sla, seed=0), plan)
    assert (found.reason is None) == is_found
    assert any(t.point.is_met(sla.constraints[0]) for t in found.whole) == is_found
    asked = CapacityQuestion.of_node(node, found.tried[0].settings, load, sla, seed=0)
    assert (dependable_under(asked, node, load) is not None) == is_found
