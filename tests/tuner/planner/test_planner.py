from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.objective import Goal, Objective
from policies.points import INTERVAL_Z
from policies.report import flat_metrics
from policies.select import ChoiceReason
from policies.sla import Sla
from tests.tuner.worlds import LinearTimer
from tuner.backends import list_backends, load_backend
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.planner.bounds import (
    CertainMissError,
    LateWatch,
    backlog_reason,
    certain_miss,
)
from tuner.planner.document import choices, plan_json
from tuner.planner.explore import (
    JudgedOn,
    busiest,
    explore,
)
from tuner.planner.failures import Why
from tuner.planner.fitting import MAX_CAPS, memory_reason, plan_settings
from tuner.planner.planner import PlanReport, make_plan
from tuner.planner.question import Question
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload
from tuner.workload.write import TraceForm, trace_text

WORKLOAD = "gamma:rate=6,cv=2,input=1500,output=12,requests=30"


@pytest.fixture(scope="module")
def node() -> Node:
    return describe_node(
        model="llama-3.1-70b", hardware="4xh200", dtype="bf16", backend="gearshift"
    )


@pytest.fixture(scope="module")
def workload() -> Workload:
    return parse_workload(WORKLOAD, seed=1)


@pytest.fixture(scope="module")
def report(node: Node, workload: Workload) -> PlanReport:
    return make_plan(node, workload, Sla.parse("p95_ttft_ms<=4000,p95_tpot_ms<=150"), jobs=1)


def test_the_chance_of_the_best_rests_on_slow_steps_and_on_draws_of_the_same_traffic(
    report: PlanReport,
) -> None:
    best, sla = report.selection.best, report.question.sla
    assert best is not None
    assert best.runs is not None
    assert best.runs.draws == (0, 1, 2, 3, 4)
    assert {run.slowness for run in best.runs.runs if run.draw == 0} == {
        0.0,
        INTERVAL_Z,
        -INTERVAL_Z,
    }
    loads = [tuple(r.metrics.items()) for r in best.runs.runs if r.draw]
    assert len(set(loads)) == 4
    assert report.selection.probability == best.runs.chance(sla.per_run)


def test_the_best_three_meet_the_sla_and_say_why_with_intervals(report: PlanReport) -> None:
    found = choices(report)
    assert [choice.role for choice in found] == ["cheapest", "fastest", "balanced"]
    for choice in found:
        assert all(choice.point.is_met(c) for c in report.question.sla.per_run)
        ttft = choice.point.metrics["p95_ttft_ms"]
        assert ttft.low < ttft.value < ttft.high
        assert choice.reason
    cheapest, fastest, _ = (choice.point for choice in found)
    assert cheapest.cost_devices <= fastest.cost_devices
    assert fastest.latency_score(report.question.sla) <= cheapest.latency_score(report.question.sla)


def test_every_plan_is_feasible_or_fails_by_something_with_numbers(report: PlanReport) -> None:
    feasible = {str(point.settings.plan) for point in report.feasible}
    failing = {failure.plan: failure for failure in report.failures}
    assert not feasible & set(failing)
    assert {"tp=1", "tp=2", "sp=4,shift", "dp=2,tp=2", "pp=4"} <= feasible | set(failing)
    assert failing["tp=1"].why is Why.MEMORY
    assert "141 GB of weights per rank" in failing["tp=1"].detail
    assert failing["tp=3"].why is Why.SHAPE
    assert all(any(c.isdigit() for c in failure.detail) for failure in report.failures)


def test_a_plan_that_fits_under_smaller_caps_only_is_tried_under_those(workload: Workload) -> None:
    crowded = describe_node(
        model="llama-3.1-70b", hardware="1xh100", dtype="fp8", backend="vllm", max_model_len=2048
    )
    plan = parse_plan("tp=1").plan
    assert crowded.memory(plan).reason is not None
    assert memory_reason(crowded, plan, workload) is None
    sla = Sla.parse("p95_ttft_ms<=60000")
    explored = explore(Question(node=crowded, workload=workload, sla=sla, seed=0), plan)
    caps = {
        (t.settings.caps.max_num_seqs, t.settings.caps.max_num_batched_tokens)
        for t in explored.tried
    }
    assert caps == {(512, 512), (64, 2048)}


def test_shift_plans_take_the_threshold_of_the_step_times(report: PlanReport) -> None:
    shift = {t.settings for e in report.explored for t in e.tried if e.plan.shift}
    assert shift
    for settings in shift:
        assert settings.threshold_tokens >= settings.caps.max_num_seqs or any(
            other.caps == settings.caps and other.threshold_tokens > settings.threshold_tokens
            for other in shift
        )


@pytest.mark.parametrize("backend", ["gearshift", "arctic"])
def test_no_plan_has_more_than_eight_caps_and_thresholds_cost_none(
    node: Node, backend: str
) -> None:
    default = load_backend(backend).default_caps
    tried = {}
    for text in ("tp=4", "sp=4,shift", "pp=2,sp=2,shift"):
        plan = parse_plan(text).plan
        settings = plan_settings(plan, node.timer(plan), default)
        assert settings[0].caps == default
        assert len(settings) == len(set(settings))
        tried[text] = list(dict.fromkeys(s.caps for s in settings))
        assert len(tried[text]) <= MAX_CAPS
    assert tried["tp=4"] == tried["sp=4,shift"] == tried["pp=2,sp=2,shift"]


def test_a_ladder_is_tried_with_a_threshold_per_rung_where_the_system_has_one(node: Node) -> None:
    plan = parse_plan("sp=4,shift").plan
    default = load_backend("gearshift").default_caps
    ours = plan_settings(plan, node.timer(plan), default)
    assert any(settings.rung_thresholds for settings in ours)
    assert any(not settings.rung_thresholds for settings in ours)
    theirs = plan_settings(plan, node.timer(plan), default, has_rungs=False)
    assert set(theirs) <= {replace(settings, rung_thresholds=()) for settings in (*ours, *theirs)}
    assert not any(settings.rung_thresholds for settings in theirs)


@pytest.mark.parametrize("backend", list_backends())
def test_no_caps_hold_more_sequences_than_a_step_has_tokens(node: Node, backend: str) -> None:
    plan = parse_plan("tp=4").plan
    for settings in plan_settings(plan, node.timer(plan), load_backend(backend).default_caps):
        assert settings.caps.max_num_seqs <= settings.caps.max_num_batched_tokens


def test_the_number_of_processes_changes_nothing(
    node: Node, report: PlanReport, workload: Workload
) -> None:
    again = make_plan(node, workload, report.question.sla, jobs=2)
    documents = [json.dumps(plan_json(r, model="m"), allow_nan=False) for r in (report, again)]
    assert documents[0] == documents[1]


def test_what_is_told_of_a_plan_is_what_simulating_it_says(
    node: Node, report: PlanReport, workload: Workload
) -> None:
    point = choices(report)[0].point
    settings = point.settings
    flat = flat_metrics(node.simulate(settings, workload).measurement)
    assert point.metrics["p95_ttft_ms"].value == pytest.approx(flat["p95_ttft_ms"])


def test_an_sla_nobody_can_meet_names_what_binds_and_the_nearest_plan(
    node: Node, workload: Workload
) -> None:
    report = make_plan(node, workload, Sla.parse("p95_ttft_ms<=1,p95_tpot_ms<=150"), jobs=1)
    document = plan_json(report, model="m")
    assert report.selection.reason is ChoiceReason.SLA_INFEASIBLE
    assert document["best"] == {}
    assert document["infeasible"]["binding"] == "p95_ttft_ms<=1"
    assert document["infeasible"]["is_from_single_requests"]
    assert document["infeasible"]["closest"]["settings"]
    judged = [f for f in report.failures if f.judged_on is JudgedOn.ALONE]
    assert judged
    assert all(f.why is Why.TTFT and "to itself" in f.detail for f in judged)


def test_what_single_requests_do_not_tell_does_not_bind(node: Node, workload: Workload) -> None:
    sla = Sla.parse("mean_e2e_ms<=100000,p95_ttft_ms<=1,attainment>=0.5")
    report = make_plan(node, workload, sla, jobs=1, num_devices=2)
    assert report.is_from_alone
    assert plan_json(report, model="m")["infeasible"]["binding"] == "p95_ttft_ms<=1"


def test_a_run_stopped_early_is_not_whole_and_names_the_bound_that_was_missed(node: Node) -> None:
    load = parse_workload("poisson:rate=40,input=200,output=64,requests=120", seed=1)
    report = make_plan(node, load, Sla.parse("p95_e2e_ms<=500"), jobs=1, num_devices=2)
    stopped = [f for f in report.failures if f.judged_on is JudgedOn.PART]
    assert "tp=2" in [failure.plan for failure in stopped]
    assert all(f.why is Why.E2E and "stopped" in f.detail for f in stopped)
    document = plan_json(report, model="m")
    assert document["judged"]["part"] > 0
    assert "whole" not in document["judged"]


def test_when_all_are_overloaded_the_nearest_still_has_numbers(node: Node) -> None:
    load = parse_workload("poisson:rate=400,input=4000,output=4,requests=400", seed=1)
    report = make_plan(node, load, Sla.parse("p95_ttft_ms<=2500"), jobs=1)
    assert report.selection.best is None
    assert report.selection.closest is not None
    assert report.selection.closest.metrics["p95_ttft_ms"].value > 2500
    assert not report.is_from_alone
    assert all(f.why in (Why.LOAD, Why.TTFT, Why.MEMORY, Why.SHAPE) for f in report.failures)


def test_long_workloads_compare_caps_on_a_slice_and_say_so(node: Node) -> None:
    load = parse_workload("poisson:rate=8,input=600,output=8,requests=650", seed=1)
    sla = Sla.parse("p95_ttft_ms<=3000,p95_tpot_ms<=400")
    question = Question(node=node, workload=load, sla=sla, seed=0)
    found = explore(question, parse_plan("tp=4").plan)
    kinds = [tried.judged_on for tried in found.tried]
    assert 1 <= kinds.count(JudgedOn.WHOLE) <= 2
    assert kinds.count(JudgedOn.SLICE) >= 4


def test_a_backend_that_lacks_an_axis_excludes_its_plans_with_the_reason(
    node: Node, workload: Workload
) -> None:
    vllm = describe_node(model="llama-3.1-70b", hardware="2xh200", dtype="fp8", backend="vllm")
    report = make_plan(vllm, workload, Sla.parse("p95_ttft_ms<=9000"), jobs=1)
    why = {failure.plan: failure for failure in report.failures}
    assert why["sp=2"].why is Why.BACKEND
    assert "vllm has no sequence parallelism" in why["sp=2"].detail
    assert not any(point.settings.plan.sp > 1 for point in report.points)


def test_more_devices_than_there_are_is_refused(node: Node, workload: Workload) -> None:
    with pytest.raises(TunerError, match="16 devices asked for, 4xh200 has 4"):
        make_plan(node, workload, Sla.parse("p95_ttft_ms<=1"), num_devices=16, jobs=1)


# -- bounds ----------------------------------------------------------------------------------------


def test_a_backlog_condemns_only_what_a_simulation_condemns(node: Node) -> None:
    """The bound is optimistic: whatever it rules out misses the SLA when simulated whole."""
    load = parse_workload("burst:rate=2,peak=60,on_s=4,off_s=12,input=2500,output=8", seed=2)
    sla = Sla.parse("p95_ttft_ms<=3000")
    ruled_out = 0
    for text in ("tp=2", "tp=4", "sp=2,tp=2", "dp=2,tp=2", "pp=4", "pp=2,tp=2"):
        plan = parse_plan(text).plan
        if backlog_reason(node.timer(plan), plan, load, sla) is None:
            continue
        ruled_out += 1
        for settings in plan_settings(plan, node.timer(plan), node.backend.default_caps)[:3]:
            flat = flat_metrics(node.simulate(settings, load).measurement, sla)
            assert flat["p95_ttft_ms"] > 3000, settings
    assert ruled_out


def test_what_a_slice_condemns_misses_on_the_whole_too(node: Node) -> None:
    load = parse_workload("burst:rate=4,peak=80,on_s=4,off_s=16,input=1500,output=16", seed=3)
    sla = Sla.parse("p90_ttft_ms<=1500,p90_tpot_ms<=120")
    piece = busiest(load, len(load) // 3)
    condemned = 0
    for text in ("tp=4", "sp=2,tp=2", "pp=4", "dp=2,tp=2"):
        settings = Settings(plan=parse_plan(text).plan, caps=node.backend.default_caps)
        part = node.simulate(settings, piece).measurement
        timings = part.timings
        miss = certain_miss(
            lambda limit, timings=timings: limit.num_over(timings),
            sla,
            num_seen=len(timings),
            num_requests=len(load),
        )
        if miss is None:
            continue
        condemned += 1
        flat = flat_metrics(node.simulate(settings, load).measurement, sla)
        assert any(not c.is_met_by(flat[c.key]) for c in sla.constraints)
    assert condemned


def test_an_overloaded_simulation_is_stopped_with_the_count(node: Node) -> None:
    load = parse_workload("poisson:rate=50,input=4000,output=16,requests=600", seed=1)
    sla = Sla.parse("p95_ttft_ms<=2000")
    caps = Caps(max_num_seqs=32, max_num_batched_tokens=2048)
    settings = Settings(plan=parse_plan("tp=2").plan, caps=caps)
    with pytest.raises(CertainMissError, match="more than 30 of 600 requests miss"):
        node.simulate(settings, load, on_progress=LateWatch(load, sla, max_running=32))
    generous = Sla.parse("p95_ttft_ms<=9000000")
    node.simulate(settings, load, on_progress=LateWatch(load, generous, max_running=32))


def test_the_busiest_stretch_is_the_densest_one() -> None:
    load = parse_workload("step:rate=1,to=20,at=30,input=64,output=4,seconds=60", seed=1)
    piece = busiest(load, 50)
    assert len(piece) == 50
    assert piece.arrivals[0].arrival_s > 29
    closed = parse_workload("closed:concurrency=4,input=64,output=4,requests=90", seed=1)
    assert len(busiest(closed, 50)) == 50


def test_a_linear_timer_bounds_by_its_own_speed() -> None:
    load = parse_workload("poisson:rate=50,input=100,output=4,seconds=20", seed=1)
    plan = parse_plan("tp=2").plan
    slow = LinearTimer(fixed_s=0.0, per_token_s=0.001, host_s=0.0)
    reason = backlog_reason(slow, plan, load, Sla.parse("p95_ttft_ms<=200"))
    assert reason is not None
    assert "1000 tokens/s" in reason
    assert backlog_reason(slow, replace(plan, dp=8), load, Sla.parse("p95_ttft_ms<=200")) is None


def test_the_goal_decides_what_is_best_and_what_it_costs(
    node: Node, workload: Workload, report: PlanReport
) -> None:
    goal = Goal(objective=Objective.HEADROOM, price_per_device_hour=2.5, uses_all_devices=True)
    found = make_plan(node, workload, report.question.sla, goal=goal, jobs=1)
    sizes = {explored.plan.world_size for explored in found.explored}
    assert sizes == {4}
    document = plan_json(found, model="m")
    assert list(document["best"]) == ["most headroom", "fastest", "balanced"]
    assert document["goal"]["uses_all_devices"] is True
    best = document["best"]["most headroom"]
    assert best["cost"]["per_hour"] == 10.0
    tokens_per_s = best["metrics"]["throughput_tokens_per_s"]["value"]
    assert best["cost"]["per_million_output_tokens"] == pytest.approx(1e7 / 3600 / tokens_per_s)
    whole = [point for point in found.feasible if point.has_interval]
    assert best["headroom"] == pytest.approx(
        max(point.headroom(found.question.sla) for point in whole), abs=0.02
    )


def test_near_misses_are_plans_that_fail_with_what_they_lack(report: PlanReport) -> None:
    misses = plan_json(report, model="m")["near_misses"]
    feasible = {str(p.settings.plan) for p in report.feasible if p.has_interval}
    for miss in misses:
        assert str(Settings.from_json(miss["settings"]).plan) not in feasible
        assert any(char.isdigit() for char in miss["why"])


def test_a_plans_fastest_settings_run_to_the_end_whatever_is_looked_for(tmp_path: Path) -> None:
    # Here the caps that cost least per token are not those with the lowest latencies.
    trace = tmp_path / "azure.csv"
    trace.write_text(trace_text(parse_workload("azure-like:", seed=1), TraceForm.AZURE))
    question = Question(
        node=describe_node(
            model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="vllm@0.12"
        ),
        workload=parse_workload(f"azure:{trace},seconds=120", seed=0),
        sla=Sla.parse("p95_ttft_ms<=4000,p95_tpot_ms<=100"),
        seed=0,
    )
    plan = parse_plan("dp=2,tp=4").plan
    fastest = explore(question, plan).whole
    cheapest = explore(replace(question, objective=Objective.COST), plan).whole
    assert {t.settings for t in fastest} < {t.settings for t in cheapest}


@pytest.mark.parametrize(("model", "is_told"), [("qwen2.5-7b", True), ("qwen3-32b", False)])
def test_an_answer_says_that_its_model_was_never_served(model: str, is_told: bool) -> None:
    node = describe_node(model=model, hardware="1xh100", dtype="fp8", backend="vllm")
    load = parse_workload("poisson:rate=1,input=200,output=8,requests=10", seed=1)
    report = make_plan(node, load, Sla.parse("p95_ttft_ms<=9000"), jobs=1)
    told = plan_json(report, model=model)["warnings"]
    words = "no served run was of this model on h100 (served runs are of llama-3.1-70b on h100"
    assert any(words in warning for warning in told) is is_told
