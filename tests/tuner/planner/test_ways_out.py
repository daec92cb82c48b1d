"""What would help where nothing meets the SLA: each way is applied, and so is one a bit tighter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from policies.sla import Sla
from tuner.capacity.search import TIGHTER
from tuner.described.parse import describe_node
from tuner.planner.document import plan_json
from tuner.planner.planner import PlanReport, make_plan
from tuner.planner.replan import replanner
from tuner.planner.ways_out import WaysOut, find_ways_out, with_bound
from tuner.workload.parse import parse_workload
from tuner.workload.stretch import stretch

SLA = Sla.parse("p95_ttft_ms<=250,p95_tpot_ms<=25")


@pytest.fixture(scope="module")
def report() -> PlanReport:
    """A load that one device does not carry."""
    node = describe_node(
        model="llama-3.1-8b", hardware="1xh100", backend="vllm@0.12", max_model_len=4096
    )
    load = parse_workload("poisson:rate=90,input=512,output=32,requests=50", seed=0)
    found = make_plan(node, load, SLA, jobs=1)
    assert found.selection.best is None
    return found


@pytest.fixture(scope="module")
def ways(report: PlanReport) -> Iterator[WaysOut]:
    with replanner(report, jobs=1) as replan:
        yield find_ways_out(report, replan)


def test_the_load_and_the_devices_named_hold_and_a_twentieth_tighter_ones_do_not(
    report: PlanReport, ways: WaysOut
) -> None:
    load = report.question.workload
    assert ways.is_overload
    assert ways.load_factor is not None
    assert ways.num_devices is not None
    with replanner(report, jobs=1) as replan:
        assert replan(stretch(load, ways.load_factor), SLA, 1).selection.best is not None
        assert replan(stretch(load, TIGHTER * ways.load_factor), SLA, 1).selection.best is None
        assert replan(load, SLA, ways.num_devices).selection.best is not None
        assert replan(load, SLA, ways.num_devices - 1).selection.best is None


def test_a_relaxation_named_holds_when_applied_and_the_others_say_why_not(
    report: PlanReport, ways: WaysOut
) -> None:
    assert [way.constraint for way in ways.relaxations] == list(SLA.per_run)
    with replanner(report, jobs=1) as replan:
        for way in ways.relaxations:
            if way.relaxed is None:
                assert "none" in str(way.reason)
                continue
            bound = way.relaxed.bound
            load = report.question.workload
            relaxed = with_bound(SLA, way.constraint, bound)
            assert replan(load, relaxed, 1).selection.best is not None
            tighter = with_bound(SLA, way.constraint, bound / TIGHTER)
            assert replan(load, tighter, 1).selection.best is None


def test_the_document_says_it_in_words(report: PlanReport, ways: WaysOut) -> None:
    told = plan_json(report, model="m", ways=ways)["infeasible"]
    json.dumps(told, allow_nan=False)
    assert "is above what 1xh100 can carry within the SLA" in told["verdict"]
    assert told["enough_devices"]["num_devices"] == ways.num_devices
    alone = replace(ways, is_possible_alone=False, load_factor=None)
    told = plan_json(report, model="m", ways=alone)["infeasible"]
    assert "however low" in told["verdict"]
