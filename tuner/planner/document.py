"""The ``plan --json`` document, and its sentences."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable
from policies.objective import Objective
from policies.points import OperatingPoint
from tuner.backends.step_errors import OUTSIDE_FACTOR
from tuner.capacity.document import load_json, load_text
from tuner.described.document import (
    finite_metrics,
    memory_json,
    node_json,
)
from tuner.described.launch import node_commands
from tuner.described.node import percent
from tuner.described.queue_limit import queued_tokens
from tuner.described.step_error import StepError
from tuner.described.steps import NodeSteps, steps_json
from tuner.described.title import Asked, Title
from tuner.launch.command import LaunchCommand
from tuner.planner.certainty import error_of
from tuner.planner.explore import JudgedOn, Tried
from tuner.planner.failures import Failure
from tuner.planner.fitting import needed_kv_tokens
from tuner.planner.planner import PlanReport
from tuner.planner.ways_out import WayOut, WaysOut
from tuner.search.report import infeasible_json, point_json

# A share of runs worth a warning.
MUCH_UNEXPLAINED = 0.1
SCHEMA = "plan/v2"
NEAR_MISSES = 5
BALANCED = "least product of devices and latency of all that meet the SLA"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of the best three: its role (the objective's, fastest, balanced), numbers and reason."""

    role: str
    point: OperatingPoint
    reason: str


def choices(report: PlanReport) -> tuple[Choice, ...]:
    """The best by the goal, the fastest and a balanced one; empty if no plan meets the SLA."""
    selection = report.selection
    if selection.best is None or selection.fastest is None or selection.balanced is None:
        return ()
    best = Choice(role=selection.objective.role, point=selection.best, reason=selection.why_best)
    others = (
        Choice(
            role=Objective.LATENCY.role,
            point=selection.fastest,
            reason=Objective.LATENCY.boast,
        ),
        Choice(role="balanced", point=selection.balanced, reason=BALANCED),
    )
    return (best, *(choice for choice in others if choice.role != best.role))


def commands(report: PlanReport, point: OperatingPoint, model: str) -> tuple[LaunchCommand, ...]:
    """How to start a point's settings on each serving system; ``model`` as the user named it."""
    question, settings = report.question, point.settings
    node, workload = question.node, question.workload
    return node_commands(
        node,
        settings,
        model=model,
        longest_tokens=needed_kv_tokens(node, workload),
        queued_tokens=queued_tokens(node, settings, workload, question.sla),
    )


def plan_title(report: PlanReport, *, model: str) -> Title:
    """What was asked, and what answers it."""
    question = report.question
    asked = Asked(model=model, workload=question.workload, sla=question.sla, seed=question.seed)
    return Title.of_node(question.node, asked)


def plan_json(
    report: PlanReport,
    *,
    model: str,
    ways: WaysOut | None = None,
    table: CapacityTable | None = None,
) -> dict[str, Any]:
    """The report as a JSON value without wall times: equal inputs give equal bytes.

    If they were looked for, ``ways`` are the ways out when nothing meets the SLA, and ``table`` has
    what each plan carries.
    """
    question = report.question
    origin = node_json(question.node, _any_point(report).settings, model)
    del origin["memory"]
    return {
        "schema": SCHEMA,
        "title": str(plan_title(report, model=model)),
        "gearshift": version("gearshift"),
        **origin,
        "num_devices": report.num_devices,
        "is_interrupted": report.interrupted is not None,
        "max_model_len": question.node.max_model_len,
        "steps": steps_json(
            NodeSteps(question.node), _told_point(report).settings, question.workload
        ),
        "workload": question.workload.describe(),
        "sla": str(question.sla),
        "goal": report.goal.to_json(),
        "seed": question.seed,
        "best": {
            choice.role: {
                **_point_json(report, choice.point),
                "reason": choice.reason,
                "cost": report.goal.cost_json(choice.point),
                "launch": [command.to_json() for command in commands(report, choice.point, model)],
            }
            for choice in choices(report)
        },
        "feasible": [_point_json(report, point) for point in report.feasible],
        "near_misses": near_misses(report),
        "infeasible": infeasible(report, ways),
        "capacity_table": None if table is None else table.to_json(),
        "failing": [failure_json(failure) for failure in report.failures],
        "tried": [
            tried_json(tried)
            for explored in report.explored
            for tried in explored.tried
            if tried.judged_on is not JudgedOn.ALONE
        ],
        "judged": {kind.value: report.count(kind) for kind in JudgedOn if report.count(kind)},
        "warnings": list(warnings(report)),
    }


def near_misses(report: PlanReport) -> list[dict[str, Any]]:
    """The plans that came nearest without meeting the SLA dependably, and what they lack."""
    if report.is_from_alone:
        return []
    found = report.selection.near_misses(report.question.sla, NEAR_MISSES)
    return [{**_point_json(report, miss.point), "why": miss.detail} for miss in found]


def infeasible(report: PlanReport, ways: WaysOut | None = None) -> dict[str, Any] | None:
    """What stands in the way if nothing meets the SLA (None where planning was interrupted: nobody
    knows). With ``ways``, relaxations are those that
    hold when applied; without, they are read off the points at hand."""
    if report.selection.best is not None or report.interrupted is not None:
        return None
    found = infeasible_json(report.selection, report.question.sla)
    found["is_from_single_requests"] = report.is_from_alone
    if ways is not None:
        found |= ways_json(report, ways)
    return found


def ways_json(report: PlanReport, ways: WaysOut) -> dict[str, Any]:
    """What would help, each way tried: a lower load, more devices, a relaxed bound."""
    load, count = ways.load_factor, ways.num_devices
    workload = report.question.workload
    return {
        "is_possible_alone": ways.is_possible_alone,
        "is_overload": ways.is_overload,
        "verdict": _overload_text(report, ways),
        "asked_load": load_json(workload, 1.0),
        "highest_load": None
        if load is None
        else {**load_json(workload, load), "settings": _settings_json(ways.load_settings)},
        "enough_devices": None
        if count is None
        else {"num_devices": count, "settings": _settings_json(ways.devices_settings)},
        "most_devices_tried": ways.most_devices,
        "relaxations": [_way_json(way) for way in ways.relaxations],
    }


def _way_json(way: WayOut) -> dict[str, Any]:
    asked, relaxed = way.constraint, way.relaxed
    return {
        "constraint": str(asked),
        "bound": None if relaxed is None else relaxed.bound,
        "relaxed": None if relaxed is None else str(relaxed),
        "price": None if relaxed is None else abs(relaxed.bound - asked.bound) / asked.bound,
        "price_per_percentile_point_ms": way.price_per_point,
        "settings": _settings_json(way.settings),
        "reason": way.reason,
    }


def _settings_json(settings: Settings | None) -> dict[str, Any] | None:
    return None if settings is None else settings.to_json()


def _overload_text(report: PlanReport, ways: WaysOut) -> str:
    workload = report.question.workload
    devices = f"{report.num_devices}x{report.question.node.hardware.device.name}"
    if ways.load_factor is None:
        return f"no load of this workload is carried within the SLA by {devices}, however low"
    asked, most = load_json(workload, 1.0), load_json(workload, ways.load_factor)
    if load_text(asked) == load_text(most):
        return f"the load is above what {devices} can carry"
    return (
        f"the load of {load_text(asked)} is above what {devices} can carry within the SLA: "
        f"{load_text(most)}"
    )


def failure_json(failure: Failure) -> dict[str, Any]:
    return {
        "plan": failure.plan,
        "why": failure.why.value,
        "detail": failure.detail,
        "judged_on": failure.judged_on.value if failure.judged_on else None,
        "settings": failure.settings.to_json() if failure.settings else None,
    }


def tried_json(tried: Tried) -> dict[str, Any]:
    return {
        "settings": tried.settings.to_json(),
        "judged_on": tried.judged_on.value,
        "metrics": finite_metrics(tried.metrics),
        "note": tried.note,
    }


def warnings(report: PlanReport) -> tuple[str, ...]:
    """What a reader has to know before believing the plan."""
    node, workload = report.question.node, report.question.workload
    device = node.hardware.device
    found = list(workload.warnings)
    if report.interrupted is not None:
        found.append(report.interrupted)
    error = _step_error(report)
    off = f"a step may be off by {percent(error.decode)}"
    if error.prefill != error.decode:
        off = f"a step may be off by {percent(error.decode)}, with prompts {percent(error.prefill)}"
    origin = "; ".join(node.doubts)
    if node.has_device:
        origin = f"{device.title} is {device.calibration}"
    found.append(f"simulated, not measured: {origin}; {off} (90 % interval)")
    if error.unseen:
        found.append(
            f"no served run was of {error.unseen}; steps are taken to be as uncertain as models "
            "that were left out of the fit showed"
        )
    if error.outside:
        found.append(
            f"outside of what was compared with served runs: {', '.join(error.outside)}; steps are "
            f"taken to be {OUTSIDE_FACTOR:g} times as uncertain"
        )
    if error.unexplained >= MUCH_UNEXPLAINED:
        found.append(
            f"{error.unexplained:.0%} of the published runs of {node.backend.title} like "
            "this had a TTFT that no step times explain; P does not cover that"
        )
    if node.has_device and not node.backend.is_measured:
        found.append(node.unmeasured)
    if any(t.judged_on is JudgedOn.SLICE for e in report.explored for t in e.tried):
        found.append(
            "caps were compared on the busiest stretch of the workload; only the best of each "
            "plan ran on all of it"
        )
    if workload.shares_beginnings and not node.backend.prefix_cache:
        found.append("prompts share beginnings, and every one is computed again")
    return tuple(found)


def _step_error(report: PlanReport) -> StepError:
    """The point that the answer is about: the best one, the near miss, or any plan that fits."""
    found = report.selection
    return error_of(report.question, found.best or found.closest or _any_point(report))


def _point_json(report: PlanReport, point: OperatingPoint) -> dict[str, Any]:
    node = report.question.node
    return {
        **point_json(point, report.question.sla),
        "memory": memory_json(
            node.memory(point.settings.plan, caps=point.settings.caps), node.block_size
        ),
    }


def _told_point(report: PlanReport) -> OperatingPoint:
    """The answer, else the near miss, else any plan that fits."""
    selection = report.selection
    return selection.best or selection.closest or _any_point(report)


def _any_point(report: PlanReport) -> OperatingPoint:
    """Any plan that fits, because what is told of the node is the same for all."""
    tried = next(t for e in report.explored for t in e.tried)
    return tried.point
