"""How one scene is played against a running control plane."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from api.clients.client import Client
from api.demo.processes import Children, DemoError
from api.demo.scenes import Scene
from api.schemas.serving import DecisionView
from api.schemas.tuning import RecommendationView
from engine.spec.settings import Settings
from policies.attainment import SlaReport, judge
from policies.numbers import short
from policies.sla import Sla
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget, get_served_model
from tuner.workload.parse import parse_workload

SHOWN = ("p95_ttft_ms", "p95_tpot_ms", "throughput_tokens_per_s", "attainment")
REGISTER_S = 30.0
SETTLE_S = 6.0
STEPS_METRIC = "gearshift_steps_total"


@dataclass(frozen=True, kw_only=True)
class Act:
    """SLA attainment under one load, before or after the recommendation."""

    name: str
    settings: str
    report: SlaReport
    steps: str


class Story:
    """Plays scenes: an engine joins, a job tunes it, the answer is applied, the load changes."""

    def __init__(
        self,
        console: Console,
        client: Client,
        children: Children,
        *,
        control_url: str,
        folder: Path,
    ) -> None:
        self._console = console
        self._client = client
        self._children = children
        self._control = ("--control", control_url)
        self._folder = folder

    def play(self, scene: Scene, *, seed: int) -> str:
        """One whole scene; returns the engine's address (it is still running)."""
        self._console.rule(f"[bold]{scene.title}")
        model_dir = self._folder / scene.preset
        self._children.run(
            "model", "create", str(model_dir), "--preset", scene.preset, "--seed", str(seed)
        )
        engine_id, url = self._start_engine(scene, model_dir)
        self._console.print(f"engine {engine_id} at {url}, an operator's guess: {scene.guess}")
        acts = [self._load(scene, scene.workload, url, engine_id, "before", seed)]
        recommendation = self._tune(scene, model_dir, seed)
        if recommendation is None:
            return url
        self._apply(recommendation, engine_id)
        acts.append(self._load(scene, scene.workload, url, engine_id, "after", seed))
        acts.append(self._rush(scene, url, engine_id, seed))
        self._print_acts(acts, scene)
        return url

    # -- the engine ----------------------------------------------------------------------------

    def _start_engine(self, scene: Scene, model_dir: Path) -> tuple[str, str]:
        name = f"demo-{scene.preset}"
        _, ready = self._children.start(
            name,
            *("engine", "serve", "--model", str(model_dir), "--plan", scene.guess),
            *("--port", "0", "--name", name, *scene.engine_options, *self._control),
        )
        end_s = time.monotonic() + REGISTER_S
        while time.monotonic() < end_s:
            for engine in self._client.list_engines():
                if engine.name == name:
                    return engine.id, ready["url"]
            time.sleep(0.2)
        raise DemoError(f"engine {name} did not register within {REGISTER_S:.0f} s")

    def _settings(self, engine_id: str) -> str:
        return str(Settings.from_json(self._client.get_engine(engine_id).effective_policy))

    # -- load ----------------------------------------------------------------------------------

    def _load(self, scene: Scene, spec: str, url: str, engine_id: str, name: str, seed: int) -> Act:
        """Replay a workload against the engine over HTTP and judge it."""
        workload = parse_workload(spec, seed=seed)
        served = get_served_model(url)
        before = _steps_by_mode(url)
        with (
            HttpTarget(url, served.name) as target,
            _bar(self._console, f"load ({name})", len(workload)) as advance,
        ):
            measurement = run_load(
                workload,
                target,
                seed=seed,
                timeout_s=60.0,
                vocab_size=scene.vocab_size,
                on_progress=lambda progress: advance(progress.completed),
            )
        report = judge(Sla.parse(scene.sla), measurement)
        steps = _steps_by_mode(url)
        steps.subtract(before)
        return Act(
            name=name,
            settings=self._settings(engine_id),
            report=report,
            steps=shares(steps),
        )

    def _rush(self, scene: Scene, url: str, engine_id: str, seed: int) -> Act:
        """Change the load and show what the controller did about it."""
        seen = {decision.id for decision in self._client.list_decisions(engine_id)}
        act = self._load(scene, scene.rush, url, engine_id, "after, load changed", seed)
        time.sleep(SETTLE_S)
        fresh = [d for d in self._client.list_decisions(engine_id) if d.id not in seen]
        moves = [d for d in reversed(fresh) if d.action != "hold"]
        # Decisions like the one before are counted, not kept.
        self._console.print(
            f"the controller changed its mind {len(fresh)} times and acted {len(moves)} times"
        )
        for decision in moves:
            self._console.print(
                f"  {decision.action} because {decision.reason}: {_moved(decision)}",
                highlight=False,
            )
        return act

    # -- tuning --------------------------------------------------------------------------------

    def _tune(self, scene: Scene, model_dir: Path, seed: int) -> RecommendationView | None:
        """Submit a job through REST, show its progress, print what it recommends."""
        job = self._client.create_tuning_job(
            {
                **scene.job,
                "model_dir": str(model_dir),
                "workload": scene.workload,
                "sla": scene.sla,
                "seed": seed,
                "options": scene.options,
            }
        )
        with _bar(self._console, "tuning trials", scene.job["trials"]) as advance:
            done = 0
            for event in self._client.follow_tuning_job(job.id):
                done += event.type == "trial"
                advance(done)
                self._console.print(f"  {event.type}: {event.told}", highlight=False)
        job = self._client.get_tuning_job(job.id)
        if job.state != "succeeded" or job.recommendation_id is None:
            self._console.print(f"job {job.state}: {job.reason}")
            return None
        found = self._client.get_recommendation(job.recommendation_id)
        self._print_recommendation(found.recommendation or {}, scene)
        return found

    def _apply(self, recommendation: RecommendationView, engine_id: str) -> None:
        started_s = time.monotonic()
        changed = self._client.apply_recommendation(recommendation.id, engine_id)
        version = changed.policy.version
        self._client.wait_applied(engine_id, version, timeout_s=90)
        self._console.print(
            f"applied as policy version {version} in {time.monotonic() - started_s:.1f} s: "
            f"{self._settings(engine_id)}"
        )

    # -- tables --------------------------------------------------------------------------------

    def _print_recommendation(self, found: dict[str, Any], scene: Scene) -> None:
        table = Table(
            "metric",
            "simulated (90% interval)",
            found["fidelity"],
            title=(
                f"recommended: {Settings.from_json(found['settings'])} for {scene.sla}, "
                f"P(SLA met) {found['sla_probability']:.2f}"
            ),
        )
        interval = found["interval"]
        for name in SHOWN:
            table.add_row(
                name,
                _estimate(interval["simulated"].get(name)),
                _estimate(interval[found["fidelity"]].get(name)),
            )
        self._console.print(table)
        self._console.print(f"why: {found['explanation']}", highlight=False)

    def _print_acts(self, acts: list[Act], scene: Scene) -> None:
        table = Table(
            "when",
            "settings at the end",
            "steps by mode",
            "attainment",
            "goodput req/s",
            "SLA",
            title=f"SLA attainment, {scene.sla}",
        )
        for act in acts:
            report = act.report
            attainment = "-" if report.attainment is None else f"{report.attainment:.3f}"
            verdict = "met" if report.is_met else "missed"
            goodput = f"{report.goodput_rps:.2f}"
            table.add_row(act.name, act.settings, act.steps, attainment, goodput, verdict)
        self._console.print(table)


def shares(steps: Counter[str]) -> str:
    """Whole percents of each mode that steps ran in, most first."""
    total = sum(steps.values())
    return ", ".join(f"{mode} {100 * n / total:.0f} %" for mode, n in steps.most_common() if n > 0)


def _steps_by_mode(url: str) -> Counter[str]:
    """Steps of the engine at ``url`` since its start, as its metrics tell them."""
    text = httpx.get(f"{url}/metrics", timeout=10.0).text
    return Counter(
        {
            sample.labels["mode"]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == STEPS_METRIC
        }
    )


@contextmanager
def _bar(console: Console, text: str, total: int) -> Iterator[Any]:
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda completed: progress.update(task, completed=completed)


def _estimate(parts: dict[str, float | None] | None) -> str:
    if parts is None or parts["value"] is None:
        return "-"
    value, low, high = (
        "-" if (number := parts[name]) is None else short(number)
        for name in ("value", "low", "high")
    )
    return f"{value} ({low}..{high})"


def _moved(decision: DecisionView) -> str:
    return str(Settings.from_json(decision.settings)) if decision.settings else ""
