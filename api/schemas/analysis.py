"""What is made of a tuning job's trials."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import Json, View

JOB = "job_0199aa10c0e7f3a91c2d4"
SLA = "p95_ttft_ms<=500,p95_tpot_ms<=50"
PARETO: Json = {
    "job_id": JOB,
    "sla": SLA,
    "aims": [
        {"key": "num_devices", "direction": "less"},
        {"key": "p95_ttft_ms", "direction": "less"},
    ],
    "num_points": 20,
    "front": [
        {
            "trial": 7,
            "settings": {"plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 4}},
            "num_devices": 4,
            "fidelity": "simulated",
            "metrics": {"p95_ttft_ms": {"value": 310.0, "low": 290.0, "high": 331.0}},
            "is_feasible": True,
            "sla_probability": 0.97,
        }
    ],
}
LEVEL: Json = {"value": 8, "num_points": 6, "latency_over_bound": 0.41}
KNOB: Json = {"knob": "tp", "share": 0.71, "levels": [LEVEL]}
IMPORTANCE: Json = {"job_id": JOB, "sla": SLA, "num_points": 20, "knobs": [KNOB]}


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

    model_config = ConfigDict(json_schema_extra={"examples": [PARETO]})

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
        description="Share of the variance of log latency that it explains by itself, less what "
        "chance would (epsilon squared), from 0 to 1"
    )
    levels: list[LevelView]


class ImportanceView(View):
    """How much each knob had to do with latency among a job's trials, most important first."""

    model_config = ConfigDict(json_schema_extra={"examples": [IMPORTANCE]})

    job_id: str
    sla: str
    num_points: int
    knobs: list[KnobView]
