"""From a job as REST takes it to the tuner's own specification."""

from __future__ import annotations

from api.schemas.base import Json
from tuner.search.spec import TuningSpec

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
# Jobs of earlier versions have none.
NEWER = ("backend",)


def tuning_spec(job: Json) -> TuningSpec:
    """The tuner's specification of a job.

    Raises:
        TunerError: an unknown option or a value outside its range.
        PolicyInputError: an SLA that cannot be read.
    """
    shared = {name: job[name] for name in SHARED}
    newer = {name: job[name] for name in NEWER if job.get(name) is not None}
    return TuningSpec.from_json({**shared, **newer, **job["options"]})


def job_document(spec: TuningSpec) -> Json:
    """The inverse of :func:`tuning_spec`."""
    every = spec.to_json()
    options = {name: value for name, value in every.items() if name not in (*SHARED, *NEWER)}
    return {**{name: every[name] for name in (*SHARED, *NEWER)}, "options": options}
