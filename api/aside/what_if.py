"""A model on hardware that is not here, under a load: simulated, with its interval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.spec.modes import ENDS
from engine.spec.plan import DEFAULT_SHIFT_THRESHOLD, PlanSpec, parse_plan
from engine.spec.settings import Settings
from policies.sla import Sla
from tuner.described.document import node_json, node_warnings, simulation_json, with_interval
from tuner.described.node import Node
from tuner.described.parse import check_served, describe_node
from tuner.described.title import Asked, Title
from tuner.search.design import advised_rule
from tuner.simulation.simulate import OnProgress, SimulationResult
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

Json = dict[str, Any]
MAX_REQUESTS = 20_000
KEPT = ("metrics", "sla", "intervals", "requests", "settings", "warnings", "title")


def simulated(question: Json) -> Json:
    """The simulation document of ``question``: see ``api.services.what_if``.

    Raises:
        TunerError: too many requests, or what the backend cannot run.
    """
    node = describe_node(
        model=question["model"],
        hardware=question["hardware"],
        dtype=question["dtype"],
        backend=question["backend"],
    )
    spec, seed = parse_plan(question["plan"]), question["seed"]
    check_served(node, spec.plan)
    workload = parse_workload(question["workload"], seed=seed)
    if len(workload) > MAX_REQUESTS:
        raise TunerError(f"{len(workload)} requests; at most {MAX_REQUESTS}: lower the rate")
    settings = _settings(spec, node)
    sla = Sla.parse(question["sla"])

    def run(step_scale: float, on_progress: OnProgress) -> SimulationResult:
        return node.simulate(
            settings, workload, seed=seed, step_scale=step_scale, on_progress=on_progress
        )

    result = run(1.0, lambda *_: None)
    asked = Asked(model=question["model"], workload=workload, sla=sla, seed=seed)
    document = simulation_json(
        result,
        sla=sla,
        settings=settings,
        workload=workload,
        seed=seed,
        origin=node_json(node, settings, question["model"]),
        intervals=with_interval(result, run, sla, interval=node.interval),
        warnings=node_warnings(node, settings, workload),
        title=str(Title.of_node(node, asked)),
    )
    return {name: document[name] for name in KEPT if name in document}


def _settings(spec: PlanSpec, node: Node) -> Settings:
    """The plan with the backend's caps; thresholds that are not named are advised."""
    caps, plan = node.backend.default_caps, spec.plan
    if spec.threshold_tokens is None and plan.shift:
        modes = plan.modes if node.has_rungs else ENDS
        rule = advised_rule(node.timer(plan), modes, caps.max_num_seqs)
        spec = replace(
            spec,
            threshold_tokens=rule.threshold_tokens,
            rung_thresholds=spec.rung_thresholds or rule.rung_thresholds,
        )
    threshold = spec.threshold_tokens
    return Settings(
        plan=plan,
        caps=caps,
        threshold_tokens=DEFAULT_SHIFT_THRESHOLD if threshold is None else threshold,
        rung_thresholds=spec.rung_thresholds,
    )
