"""From a job as REST takes it to the tuner's own specification."""

from __future__ import annotations

from typing import Any

from api.schemas.base import Json
from engine.spec.measurement import Fidelity
from tuner.search.spec import LOCAL, TuningSpec

SHARED = (
    "model_dir",
    "num_devices",
    "workload",
    "sla",
    "trials",
    "seed",
    "hardware",
    "dtype",
)
# What jobs of earlier versions were simulated as where none was named.
EARLIER_BACKEND = "gearshift"


def tuning_spec(job: Json) -> TuningSpec:
    """The tuner's specification of a job.

    Raises:
        TunerError: an unknown option or a value outside its range.
        PolicyInputError: an SLA that cannot be read.
    """
    shared = {name: job[name] for name in SHARED}
    shared["quantization"] = job.get("quantization")  # jobs of earlier versions have none
    backend = job.get("backend") or EARLIER_BACKEND
    return TuningSpec.from_json({**shared, "backend": backend, **job["options"]})


def field_of(job: Json, name: str) -> Any:
    """One field of a job's specification, wherever it stands; as by default where it does not."""
    options = job.get("options") or {}
    return options.get(name, job.get(name, TuningSpec.__dataclass_fields__[name].default))


def foreseen_scale(job: Json, recommended: Json) -> float:
    """How many times as long as its step model says steps were taken to be by a job that
    recommended ``recommended``."""
    retune = job.get("retune") or {}
    is_simulated = recommended.get("fidelity") == Fidelity.SIMULATED
    if retune and field_of(job, "hardware") == LOCAL and is_simulated:
        return float(retune.get("step_scale", 1.0))  # no device was free to measure them anew
    return float(field_of(job, "step_scale"))


def job_document(spec: TuningSpec) -> Json:
    """The inverse of :func:`tuning_spec`."""
    every = spec.to_json()
    own = (*SHARED, "quantization", "backend")
    options = {name: value for name, value in every.items() if name not in own}
    return {**{name: every[name] for name in own}, "options": options}
