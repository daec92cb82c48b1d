"""Tuning jobs, trials, cost models, recommendations."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import (
    AliasChoices,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from api.schemas.base import Body, Json, View, shown
from api.schemas.examples import cost_models, tuning
from api.schemas.plain import Whole
from engine.spec.quantisation import WeightFormat
from store.models import JobState
from tuner.hardware.device import MAX_DEVICES
from tuner.search.spec import MAX_SEED


class OnBusy(StrEnum):
    """What a job does while serving engines hold the devices its live trials need."""

    WAIT = "wait"
    SIMULATE = "simulate"


class TuningJobCreate(Body):
    """A tuning job: the tuner's specification and how to behave beside serving engines."""

    model_config = shown(tuning.JOB_BODY)

    model_dir: str = Field(
        validation_alias=AliasChoices("model", "model_dir"),
        description="Model folder in GEARSHIFT_MODEL_ROOT; on described hardware also a name of "
        "/v1/models. The key may be model or model_dir",
    )
    num_devices: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_DEVICES,
        description="Most devices a plan may use. Needed on this machine; on described hardware by "
        "default all",
    )
    workload: str = Field(
        validation_alias=AliasChoices("workload", "workload_id"),
        description="Workload SPEC, as on the command line; traces lie in GEARSHIFT_TRACE_ROOT. Or "
        "an uploaded one: wl_...[,seconds=60,...]. The key may be workload or workload_id",
    )
    sla: str = Field(description="p95_ttft_ms<=500,... in any accepted spelling")
    trials: Whole = Field(default=20, ge=1, le=1000)
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED)
    hardware: str = Field(
        default="local", description="'local', or described hardware of /v1/hardware, as in 8xh200"
    )
    dtype: str | None = Field(default=None, description="Number format, else the checkpoint's")
    quantization: WeightFormat | None = Field(
        default=None,
        description="On this machine: quantise the layers of a plain checkpoint as it is loaded",
    )
    backend: str | None = Field(
        default=None,
        description="Serving system on described hardware, of /v1/backends, as vllm, vllm@0.12 or "
        "vllm@0.12,async_scheduling=on; by default vllm",
    )
    cost_model_id: str | None = Field(default=None, description="Use this step model")
    on_busy: OnBusy = Field(
        default=OnBusy.SIMULATE, description="When no device is free for live trials"
    )
    options: Json = Field(default_factory=dict, description="Further fields of the tuner's spec")

    _spelt: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_spelling(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(data)
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if isinstance(field.validation_alias, AliasChoices):
                    words = [word for word in field.validation_alias.choices if word in data]
                    made._spelt[name] = str(words[0]) if words else name
        return made

    def pointer(self, field: str) -> str:
        """JSON pointer of a field as the body spelt it."""
        return f"/{self._spelt.get(field, field)}"


class TuningJobView(View):
    """A tuning job as it stands."""

    model_config = shown(tuning.JOB)

    id: str
    state: JobState
    reason: str
    spec: Json
    num_trials: int
    trials_done: int
    recommendation_id: str | None
    cost_model_id: str | None
    workload_id: str | None = Field(description="The uploaded workload it names")
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class TrialView(View):
    """A finished trial."""

    model_config = shown(tuning.TRIAL)

    id: str
    job_id: str
    number: int
    state: str
    record: Json = Field(description="The tuner's trial record")
    created_at: datetime


class CostModelCreate(Body):
    """A step model fitted elsewhere (``gearshift profile``)."""

    model_config = shown(cost_models.BODY)

    document: Json = Field(
        description="The step model's JSON; its fingerprint names hardware",
        json_schema_extra={
            "required": ["fingerprint"],
            "properties": {"fingerprint": {"type": "string", "minLength": 1, "maxLength": 120}},
        },
    )


class CostModelSummary(View):
    """A cost model without its document."""

    model_config = shown(cost_models.SUMMARY)

    id: str
    fingerprint: str
    created_by: str
    created_at: datetime


class CostModelView(CostModelSummary):
    """A cost model."""

    model_config = shown(cost_models.WHOLE)

    document: Json


class RecommendationView(View):
    """What a job recommends. ``recommendation`` is null when nothing meets the SLA."""

    model_config = shown(tuning.RECOMMENDATION)

    id: str
    job_id: str | None
    cost_model_id: str | None
    sla: str
    recommendation: Json | None = Field(validation_alias=AliasChoices("document", "recommendation"))
    schedule: Json | None
    warnings: list[Any]
    created_at: datetime


class ApplyRequest(Body):
    """Apply a recommendation to a running engine."""

    model_config = shown(tuning.APPLY)

    engine_id: str
    reason: str = Field(default="apply recommendation", max_length=500)
