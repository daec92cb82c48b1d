"""What is made of a tuning job's trials."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Json, View, shown
from api.schemas.examples import analysis


class AimView(View):
    """One thing that counts on the front."""

    key: str = Field(description="num_devices, or a metric that the SLA bounds")
    direction: Literal["less", "more"] = Field(description="Which way is better")


class FrontPoint(View):
    """A trial that no other beats."""

    trial: int = Field(description="Its number in the job")
    settings: Json
    num_devices: int
    fidelity: str
    metrics: Json = Field(description="By SLA word: value and 90 % interval")
    is_feasible: bool
    sla_probability: float | None


class ParetoView(View):
    """The Pareto front of a job's trials so far, in the order of its aims."""

    model_config = shown(analysis.PARETO)

    job_id: str
    sla: str
    aims: list[AimView]
    num_points: int = Field(description="Settings it was chosen from")
    front: list[FrontPoint]


class LevelView(View):
    """The trials with one value of a knob."""

    value: int | float | bool | None
    num_points: int
    latency_over_bound: float = Field(
        description="Geometric mean of their latencies over the SLA's bounds; less is faster"
    )


class KnobView(View):
    """One knob that the job varied."""

    knob: str
    share: float = Field(
        description="Share of the explained variance of log latency (functional ANOVA), from 0 to 1"
    )
    levels: list[LevelView]


class ImportanceView(View):
    """How much each knob had to do with latency among a job's trials, most important first."""

    model_config = shown(analysis.IMPORTANCE)

    job_id: str
    sla: str
    num_points: int
    knobs: list[KnobView]
