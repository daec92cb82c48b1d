"""The load that settings carry within an SLA on described hardware, by simulation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from engine.spec.settings import Caps, Settings
from policies.sla import Sla
from tuner.capacity.document import capacity_json
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.search import find_capacity
from tuner.described.document import node_json, node_warnings
from tuner.described.parse import check_rungs, check_served, describe_node
from tuner.described.title import Asked, Title
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

Json = dict[str, Any]
MAX_REQUESTS = 2000


def found_capacity(question: Json) -> Json:
    """The capacity document of ``question``: see ``api.schemas.capacity``.

    Raises:
        TunerError: too many requests, or a plan that the node cannot run.
    """
    node = describe_node(
        model=question["model"],
        hardware=question["hardware"],
        dtype=question["dtype"],
        backend=question["backend"],
        block_size=question["block_size"],
        max_model_len=question["max_model_len"],
    )
    settings = read_settings(question["settings"], node.backend.default_caps)
    check_served(node, settings.plan)
    check_rungs(node, settings)
    workload = parse_workload(question["workload"], seed=question["seed"])
    if len(workload) > MAX_REQUESTS:
        raise TunerError(
            f"{len(workload)} requests; at most {MAX_REQUESTS} are looked at, so cut the workload "
            "with requests= or seconds="
        )
    sla = Sla.parse(question["sla"])
    asked = CapacityQuestion.of_node(node, settings, workload, sla, seed=question["seed"])
    told = Asked(model=question["model"], workload=workload, sla=sla, seed=question["seed"])
    return capacity_json(
        find_capacity(asked, num_draws=question["draws"]),
        workload=workload,
        sla=sla,
        settings=settings,
        seed=question["seed"],
        title=str(Title.of_node(node, told)),
        origin=node_json(node, settings, question["model"]),
        warnings=node_warnings(node, settings, workload),
    )


def read_settings(raw: Json, default: Caps) -> Settings:
    """Settings whose caps, where none are named, are those of ``default``.

    Raises:
        PlanError, PolicyError: they cannot be read.
    """
    if not isinstance(named := raw.get("caps", {}), dict):
        return Settings.from_json(raw)
    known = {name: value for name, value in asdict(default).items() if value is not None}
    return Settings.from_json({**raw, "caps": {**known, **named}})
