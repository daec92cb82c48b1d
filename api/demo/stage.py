"""What every scene of the demo does: engines join, jobs tune, answers are applied."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from api.clients.client import Client
from api.demo.processes import Children, DemoError
from api.demo.scenes import Cast
from api.schemas.tuning import RecommendationView
from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable
from policies.numbers import short
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.load.served_model import get_served_model
from tuner.workload.workload import Workload

SHOWN = ("p95_ttft_ms", "p95_tpot_ms", "throughput_tokens_per_s", "attainment")
REGISTER_S = 30.0
APPLY_S = 90.0


class Stage:
    """The running control plane, and where to tell what happens."""

    def __init__(
        self,
        console: Console,
        client: Client,
        children: Children,
        *,
        control_url: str,
        folder: Path,
        seed: int,
    ) -> None:
        self.console = console
        self.client = client
        self.folder = folder
        self.seed = seed
        self._children = children
        self._control = ("--control", control_url)

    def start_engine(self, cast: Cast) -> tuple[str, str]:
        """Make the checkpoint and serve it; the engine's id and address."""
        model_dir = self.folder / cast.preset
        self._children.run(
            "model", "create", str(model_dir), "--preset", cast.preset, "--seed", str(self.seed)
        )
        name = f"demo-{cast.preset}"
        _, ready = self._children.start(
            name,
            *("engine", "serve", "--model", str(model_dir), "--plan", cast.guess),
            *("--port", "0", "--name", name, *cast.engine_options, *self._control),
        )
        end_s = time.monotonic() + REGISTER_S
        while time.monotonic() < end_s:
            for engine in self.client.list_engines():
                if engine.name == name:
                    self.console.print(
                        f"engine {engine.id} at {ready['url']}, an operator's guess: {cast.guess}"
                    )
                    return engine.id, ready["url"]
            time.sleep(0.2)
        raise DemoError(f"engine {name} did not register within {REGISTER_S:.0f} s")

    def settings(self, engine_id: str) -> Settings:
        """What the engine runs."""
        return Settings.from_json(self.client.get_engine(engine_id).effective_policy)

    def load(self, cast: Cast, workload: Workload, url: str, name: str) -> Measurement:
        """Replay a workload against an engine over HTTP."""
        served = get_served_model(url)
        with (
            HttpTarget(url, served.name) as target,
            bar(self.console, f"load ({name})", len(workload)) as advance,
        ):
            return run_load(
                workload,
                target,
                seed=self.seed,
                timeout_s=60.0,
                vocab_size=cast.vocab_size,
                on_progress=lambda progress: advance(progress.completed),
            )

    def tune(self, cast: Cast, workload: str, sla: str) -> RecommendationView | None:
        """Submit a job through REST, show its progress, print what it recommends."""
        job = self.client.create_tuning_job(
            {
                **cast.job,
                "model_dir": str(self.folder / cast.preset),
                "workload": workload,
                "sla": sla,
                "seed": self.seed,
                "options": cast.options,
            }
        )
        with bar(self.console, "tuning trials", cast.job["trials"]) as advance:
            done = 0
            for event in self.client.follow_tuning_job(job.id):
                done += event.type == "trial"
                advance(done)
                self.console.print(f"  {event.type}: {event.told}", highlight=False)
        job = self.client.get_tuning_job(job.id)
        if job.state != "succeeded" or job.recommendation_id is None:
            self.console.print(f"job {job.state}: {job.reason}")
            return None
        found = self.client.get_recommendation(job.recommendation_id)
        self._print_recommendation(found.recommendation or {}, sla)
        return found

    def apply(self, recommendation: RecommendationView, engine_id: str) -> None:
        """Put a recommendation in force on the running engine."""
        started_s = time.monotonic()
        changed = self.client.apply_recommendation(recommendation.id, engine_id)
        version = changed.policy.version
        self.client.wait_applied(engine_id, version, timeout_s=APPLY_S)
        self.console.print(
            f"applied as policy version {version} in {time.monotonic() - started_s:.1f} s: "
            f"{self.settings(engine_id)}"
        )

    def hurry(self, engine_id: str, guards: dict[str, float]) -> None:
        """Guards for a story that lasts minutes."""
        policy = self.client.get_engine_policy(engine_id)
        changed = self.client.patch_engine_policy(
            policy, {"guards": guards}, reason="a story that lasts minutes"
        )
        self.client.wait_applied(engine_id, changed.policy.version, timeout_s=APPLY_S)

    def print_capacity(self, table: CapacityTable) -> None:
        """What each plan of a capacity table carries."""
        told = Table(
            *("devices", "plan", "carries req/s within the SLA", "90 % interval", "known by"),
            title="capacity table",
        )
        for entry in (*table.entries, *table.others):
            high = "" if entry.high_rps is None else f"{entry.high_rps:.1f}"
            told.add_row(
                str(entry.num_devices),
                str(entry.settings.plan),
                f"{entry.rate_rps:.1f}",
                f"{entry.low_rps:.1f} .. {high}",
                entry.fidelity.value,
            )
        self.console.print(told)

    def _print_recommendation(self, found: dict[str, Any], sla: str) -> None:
        table = Table(
            "metric",
            "simulated (90% interval)",
            found["fidelity"],
            title=(
                f"recommended: {Settings.from_json(found['settings'])} for {sla}, "
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
        self.console.print(table)
        self.console.print(f"why: {found['explanation']}", highlight=False)


def capacity_in(found: RecommendationView) -> CapacityTable | None:
    """What a recommendation says that plans carry; None: nothing."""
    table = (found.recommendation or {}).get("capacity_table")
    return None if table is None or not table["entries"] else CapacityTable.from_json(table)


@contextmanager
def bar(console: Console, text: str, total: int) -> Iterator[Any]:
    """A bar that grows to ``total``."""
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
