"""The first scene: a guess, the tuner's answer, and a load that rises."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from api.demo.processes import DemoError
from api.demo.scenes import BUSY_SHARE, ROOMS, RUSH_S, Scene, sla_from
from api.demo.stage import Stage, capacity_in
from api.schemas.serving import DecisionView
from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.attainment import SlaReport, judge
from policies.capacity_table import CapacityTable
from policies.sla import Sla
from tuner.workload.parse import parse_workload

SETTLE_S = 6.0
STEPS_METRIC = ("gearshift_steps_total", "mode")
REFUSED_METRIC = ("gearshift_requests_refused_total", "reason")
ADMISSION = "admission"


@dataclass(frozen=True, kw_only=True)
class Act:
    """A run under one load, before or after the recommendation: settings and modes at its end, and
    how many requests were turned away because nothing carries as many."""

    name: str
    settings: str
    measurement: Measurement
    steps: str
    refused: int = 0

    def report(self, sla: str) -> SlaReport:
        return judge(Sla.parse(sla), self.measurement)

    def attainment(self, sla: str) -> str:
        """Attainment of all requests that came, and of those let in where not all were."""
        report, let_in = self.report(sla), len(self.measurement.timings) - self.refused
        told = "-" if report.attainment is None else f"{report.attainment:.3f}"
        if not self.refused or not let_in:
            return told
        share = self.refused / len(self.measurement.timings)
        return f"{told}; {report.met / let_in:.3f} of those let in, {share:.0%} turned away"


def play(stage: Stage, scene: Scene) -> str:
    """An engine joins, a job tunes it, the answer is applied, the load rises; returns the engine's
    address (it is still running)."""
    stage.console.rule(f"[bold]{scene.title}")
    engine_id, url = stage.start_engine(scene.cast)
    busy = stage.load(scene.cast, parse_workload(scene.busy, seed=stage.seed), url, "all it can do")
    workload = scene.at(BUSY_SHARE * finished_rps(busy))
    stage.console.print(f"the load: {workload}", highlight=False)
    before = _act(stage, scene, workload, (engine_id, url), "before")
    for room in ROOMS:
        sla = sla_from(before.measurement, room)
        stage.console.print(f"the SLA, from what the guess did: {sla}", highlight=False)
        recommendation = stage.tune(scene.cast, workload, sla)
        if recommendation is not None:
            break
    else:
        return url
    table = capacity_in(recommendation)
    if table is not None:
        stage.print_capacity(table)
    stage.apply(recommendation, engine_id)
    stage.hurry(engine_id, scene.guards)
    after = _act(stage, scene, workload, (engine_id, url), "after")
    changed = [] if table is None else _rush(stage, scene, (engine_id, url), table)
    _print_acts(stage, [before, after, *changed], sla)
    return url


def _act(stage: Stage, scene: Scene, spec: str, engine: tuple[str, str], name: str) -> Act:
    """Replay a workload against the engine over HTTP."""
    engine_id, url = engine
    before, refused = _counted(url, STEPS_METRIC), _counted(url, REFUSED_METRIC)
    measured = stage.load(scene.cast, parse_workload(spec, seed=stage.seed), url, name)
    steps = _counted(url, STEPS_METRIC)
    steps.subtract(before)
    return Act(
        name=name,
        settings=str(stage.settings(engine_id)),
        measurement=measured,
        steps=shares(steps),
        refused=_counted(url, REFUSED_METRIC)[ADMISSION] - refused[ADMISSION],
    )


def _rush(stage: Stage, scene: Scene, engine: tuple[str, str], table: CapacityTable) -> list[Act]:
    """More load, twice as long as the controller has to notice it, and what it did."""
    engine_id, _ = engine
    spec = scene.rush(table, stage.settings(engine_id).plan, stage.seed)
    stage.console.print(f"the load rises: {spec}", highlight=False)
    seen = {decision.id for decision in stage.client.list_decisions(engine_id)}
    names = ("load has risen", f"{RUSH_S:.0f} s later")
    acts = [_act(stage, scene, spec, engine, name) for name in names]
    time.sleep(SETTLE_S)
    fresh = [d for d in stage.client.list_decisions(engine_id) if d.id not in seen]
    moves = [d for d in reversed(fresh) if d.action != "hold"]
    # Decisions like the one before are counted, not kept.
    stage.console.print(
        f"the controller changed its mind {len(fresh)} times and acted {len(moves)} times"
    )
    for decision in moves:
        stage.console.print(
            f"  {decision.action} because {decision.reason}: {_moved(decision)}", highlight=False
        )
    return acts


def _print_acts(stage: Stage, acts: Sequence[Act], sla: str) -> None:
    table = Table(
        *("when", "settings at the end", "steps by mode", "attainment", "goodput req/s", "SLA"),
        title=f"SLA attainment, {sla}",
    )
    for act in acts:
        report = act.report(sla)
        verdict = "met" if report.is_met else "missed"
        goodput = f"{report.goodput_rps:.2f}"
        table.add_row(act.name, act.settings, act.steps, act.attainment(sla), goodput, verdict)
    stage.console.print(table)


def finished_rps(measured: Measurement) -> float:
    """Requests per second that ended.

    Raises:
        DemoError: none did.
    """
    if not measured.completed or not measured.window_s:
        raise DemoError("the engine answered none of the first requests")
    return len(measured.completed) / measured.window_s


def shares(steps: Counter[str]) -> str:
    """Whole percents of each mode that steps ran in, most first."""
    total = sum(steps.values())
    return ", ".join(f"{mode} {100 * n / total:.0f} %" for mode, n in steps.most_common() if n > 0)


def _counted(url: str, metric: tuple[str, str]) -> Counter[str]:
    """What the engine at ``url`` has counted since its start, by one of the metric's labels."""
    name, label = metric
    text = httpx.get(f"{url}/metrics", timeout=10.0).text
    return Counter(
        {
            sample.labels[label]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }
    )


def _moved(decision: DecisionView) -> str:
    return str(Settings.from_json(decision.settings)) if decision.settings else ""
