"""Runs that are known are not simulated again, and say what a fresh run would say."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.planner.bounds import CertainMissError
from tuner.planner.explore import late_watch
from tuner.planner.question import AS_TOLD, Question
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Arrival, Workload, WorkloadSource

SLA = Sla.parse("p95_ttft_ms<=400,p95_tpot_ms<=20")
OTHERS = (
    "p50_ttft_ms<=40,attainment>=0.5",
    "ttft:60,mean_e2e_ms<=300,throughput_tokens_per_s>=9,attainment>=0.9",
    "p99_tpot_ms<=9,p90_e2e_ms<=200",
    "p95_itl_ms<=12,p95_ttft_ms<=100",
)
WIDE = Settings(plan=parse_plan("tp=1").plan, caps=Caps(max_num_seqs=256))


@pytest.fixture(scope="module")
def node() -> Node:
    return describe_node(model="llama-3.1-8b", hardware="1xh100", backend="gearshift")


def ask(node: Node, sla: Sla = SLA, spec: str = "poisson:rate=20,input=200,output=8") -> Question:
    return Question(
        node=node, workload=parse_workload(f"{spec},requests=60", seed=1), sla=sla, seed=0
    )


@pytest.mark.parametrize("text", OTHERS)
def test_another_sla_reads_off_a_known_run_what_a_fresh_run_says(node: Node, text: str) -> None:
    question = ask(node)
    question.flat(WIDE)
    other = replace(question, sla=Sla.parse(text))
    fresh = flat_metrics(node.simulate(WIDE, question.workload).measurement, other.sla)
    assert other.flat(WIDE) == pytest.approx(fresh, rel=1e-12)


def test_caps_that_never_bind_need_no_run_and_tighter_ones_do(node: Node) -> None:
    question = ask(node)
    question.flat(WIDE)
    load = question.workload
    wider = replace(WIDE, caps=replace(WIDE.caps, max_num_batched_tokens=8192))
    assert question.knows(wider, AS_TOLD, load)
    fresh = flat_metrics(node.simulate(wider, load).measurement, SLA)
    assert question.flat(wider) == pytest.approx(fresh, rel=1e-12)
    for caps in (Caps(max_num_seqs=2), Caps(max_num_seqs=256, max_num_batched_tokens=128)):
        assert not question.knows(replace(WIDE, caps=caps), AS_TOLD, load)


@pytest.mark.parametrize("count", [8, 80])
def test_where_beginnings_are_kept_caps_that_leave_them_less_room_need_a_run(count: int) -> None:
    small = describe_node(model="llama-3.1-8b", hardware="1xl4", backend="gearshift")
    arrivals = tuple(
        Arrival(
            arrival_s=9.0 * i, input_tokens=800, output_tokens=2, prefix_id=str(i % (count - 1))
        )
        for i in range(count)
    )
    source = WorkloadSource(spec="test", seed=0, sha256="", rows=count, span_s=9.0 * (count - 1))
    load = Workload(arrivals=arrivals, source=source)
    question = Question(node=small, workload=load, sla=SLA, seed=0)
    question.flat(WIDE)
    other = replace(WIDE, caps=replace(WIDE.caps, max_num_seqs=200))
    room = min(small.num_kv_blocks(s.plan, s.caps) for s in (WIDE, other)) * small.block_size
    assert question.knows(other, AS_TOLD, load) == (802 * (count + 2) < room)
    assert question.knows(other, AS_TOLD, load) == (count == 8)


def test_thresholds_that_no_step_tells_apart_need_no_run(node: Node) -> None:
    two = describe_node(model="llama-3.1-8b", hardware="2xh100", backend="gearshift")
    question = ask(two)
    low, high = (
        replace(WIDE, plan=parse_plan("sp=2,shift").plan, threshold_tokens=tokens)
        for tokens in (100, 101)
    )
    question.flat(low)
    assert question.knows(high, AS_TOLD, question.workload)
    assert not question.knows(replace(low, threshold_tokens=1), AS_TOLD, question.workload)
    fresh = flat_metrics(two.simulate(high, question.workload).measurement, SLA)
    assert question.flat(high) == pytest.approx(fresh, rel=1e-12)


def test_a_stopped_run_is_stopped_again_and_runs_on_where_the_bound_allows(node: Node) -> None:
    question = ask(node, Sla.parse("p99_ttft_ms<=30"), "poisson:rate=400,input=2000,output=200")
    narrow = replace(WIDE, caps=Caps(max_num_seqs=2))
    told = []
    for _ in range(2):
        with pytest.raises(CertainMissError) as miss:
            question.flat(narrow, on_progress=late_watch(question, narrow))
        told.append(str(miss.value))
    assert told[0] == told[1]
    looser = replace(question, sla=Sla.parse("p99_ttft_ms<=900000"))
    fresh = flat_metrics(node.simulate(narrow, looser.workload).measurement, looser.sla)
    found = looser.flat(narrow, on_progress=late_watch(looser, narrow))
    assert found == pytest.approx(fresh, rel=1e-12)


def test_what_was_seen_stays_in_its_process(node: Node) -> None:
    question = ask(node)
    question.flat(WIDE)
    there = pickle.loads(pickle.dumps(question))
    assert there == question
    assert not there.knows(WIDE, AS_TOLD, question.workload)
