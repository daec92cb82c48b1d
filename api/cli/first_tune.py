"""The search of ``gearshift up``: short by the clock, and plain about what its answer rests on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import log
from api.cli.engine_options import (
    MOST_DEVICES,
    MOST_SEED,
    DeviceOption,
    ModelOption,
    QuantizationOption,
)
from api.cli.trial_bar import told_lines

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.schemas.tuning import RecommendationView
    from engine.spec.settings import Settings
    from store.models import JobState

DEFAULT_WORKLOAD = "poisson:rate=2,input=256,output=64,seconds=20"
USUAL_PLAN = "tp=1"
# About what either server takes to start.
START_S = 8.0
# A run of a closed loop, of which nothing says how long it lasts; what any run takes beside its
# arrivals.
CLOSED_RUN_S = 30.0
BESIDE_RUN_S = 5.0
# Trials that have the time to run: trial 0 and the most promising two.
RUNS = 3
# Beside other work a profile takes longer than it is given, and trials should still have theirs.
PROFILE_SLACK = 1.5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The model, what it must hold, and the load it is tuned under."""

    model: ModelOption
    sla: Annotated[str, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")]
    workload: Annotated[str, typer.Option(help="Workload SPEC of the load to tune for.")] = (
        DEFAULT_WORKLOAD
    )

    def check(self) -> str:
        """The workload with its path made whole.

        Raises:
            CheckpointError, PolicyInputError, TunerError: a part that cannot be used.
        """
        from engine.spec.model import ModelConfig
        from policies.sla import Sla
        from tuner.workload.parse import parse_workload
        from tuner.workload.spec import WorkloadSpec

        ModelConfig.from_dir(self.model)
        Sla.parse(self.sla)
        parse_workload(self.workload, seed=0)
        spec = WorkloadSpec.parse(self.workload)
        return self.workload if spec.path is None else spec.at(spec.path.resolve())


@dataclass(frozen=True, kw_only=True)
class FirstTune:
    """How far the first search goes."""

    devices: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Most devices (ranks) a plan may use.")
    ] = 2
    trials: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Most trials, as far as --budget goes; 0: no search."),
    ] = 6
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time of the search, as in minutes=10; by default enough for a profile, three "
            "trials, and measuring the best once more.",
        ),
    ] = None
    profile_seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="About how long to profile this machine.")
    ] = 30.0
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")] = 0
    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN",
            help="Served where nothing is recommended; by default the settings that came nearest, "
            f"without a search {USUAL_PLAN}.",
        ),
    ] = None

    def check(self, workload: str) -> str:
        """The time of the search: what was named, else what runs of ``workload`` need.

        Raises:
            PlanError, TunerError: the plan or the time cannot be read.
        """
        from engine.spec.plan import parse_plan
        from tuner.search.budget import FINAL_SHARE, TimeBudget
        from tuner.search.spec import TuningSpec
        from tuner.workload.parse import parse_workload
        from tuner.workload.slices import head

        if self.plan is not None:
            parse_plan(self.plan)
        if self.budget is not None:
            TimeBudget.parse(self.budget)
            return self.budget
        trial = head(parse_workload(workload, seed=self.seed), TuningSpec.probe_requests)
        run_s = BESIDE_RUN_S + (CLOSED_RUN_S if trial.closed else trial.span_s)
        trials_s = PROFILE_SLACK * self.profile_seconds + RUNS * run_s
        return f"seconds={trials_s / (1 - FINAL_SHARE):.0f}"


@dataclass(kw_only=True)
class Countdown:
    """Says lines with about how many seconds are left until something is served."""

    seconds: float
    _begun_s: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        left_s = max(0.0, self._begun_s + self.seconds - time.monotonic())
        log(f"up, about {left_s:.0f} s to go: {line}")

    def only_engine_left(self) -> None:
        """What comes before it is over."""
        self.seconds = time.monotonic() - self._begun_s + START_S


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the first search ended with: a recommendation, else perhaps what came nearest."""

    recommended: RecommendationView | None = None
    nearest: Settings | None = None


def first_tune(
    client: Client,
    wanted: Wanted,
    first: FirstTune,
    countdown: Countdown,
    *,
    workload: str,
    budget: str,
) -> Found:
    """The answer of a first job, told as it goes."""
    from engine.spec.settings import Settings
    from store.models import JobState

    countdown.say(f"searching for a plan that serves {workload} (--workload) within {wanted.sla}")
    job = client.create_tuning_job(
        {
            "model_dir": str(wanted.model.resolve()),
            "num_devices": first.devices,
            "workload": workload,
            "sla": wanted.sla,
            "trials": first.trials,
            "seed": first.seed,
            "hardware": "local",
            "quantization": first.quantization,
            "options": {
                "device": first.device,
                "profile_seconds": first.profile_seconds,
                "budget": budget,
            },
        }
    )
    for line in told_lines(client.follow_tuning_job(job.id)):
        countdown.say(line)
    job = client.get_tuning_job(job.id)
    closest = None
    if job.state in (JobState.SUCCEEDED, JobState.INFEASIBLE):
        report = client.get_tuning_report(job.id)
        for line in _rests_on(report):
            log(line)
        closest = (report["infeasible"] or {}).get("closest")
    if job.recommendation_id is not None:
        return Found(recommended=client.get_recommendation(job.recommendation_id))
    nearest = None if closest is None else Settings.from_json(closest["settings"])
    served = first.plan or (nearest and f"{nearest}, which came nearest,") or USUAL_PLAN
    log(f"up: {_why_none(job.state)}, so {served} is served")
    return Found(nearest=nearest)


def _why_none(state: JobState) -> str:
    """Why there is nothing to serve by."""
    if state.value == "infeasible":
        return "nothing was found that meets the SLA with enough certainty"
    return f"the search ended as {state.value}"


def _rests_on(report: dict[str, Any]) -> Iterator[str]:
    """What to mind about the answer, what it was not worth or no time for, and how far what is
    recommended was confirmed."""
    yield from (f"warning: {warning}" for warning in report["warnings"])
    yield from (f"up: not reached: {line}" for line in report["budget"]["not_reached"])
    if (found := report["recommendation"]) is None:
        return
    again = [c for c in report["confirmations"] if c["is_met"]]
    if any(c["settings"] == found["settings"] for c in again):
        how = "confirmed in one run on requests that it was not chosen by"
    else:
        how = f"not confirmed: it was {found['fidelity']} once, and chosen by that"
    yield f"up: {how}; P(SLA met) {found['sla_probability']:.2f}"
