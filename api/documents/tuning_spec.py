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


def tuning_spec(job: Json) -> TuningSpec:
    """The tuner's specification of a job.

    Raises:
        TunerError: an unknown option or a value outside its range.
        PolicyInputError: an SLA that cannot be read.
    """
    return TuningSpec.from_json({**{name: job[name] for name in SHARED}, **job["options"]})
