"""What a cost model says, and how right it has been."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.schemas.base import Body, Json, View, shown
from api.schemas.examples import cost_models
from api.schemas.plain import Whole
from engine.spec.measurement import Fidelity
from tuner.search.spec import DEFAULT_KV_CACHE_MIB, MAX_SEED


class PredictRequest(Body):
    """Settings of an engine and the load it would have."""

    model_config = shown(cost_models.QUESTION)

    model: str = Field(
        min_length=1, max_length=4096, description="Model folder in GEARSHIFT_MODEL_ROOT, or a name"
    )
    settings: Json = Field(description="As an engine's policy has them: plan, shift, caps, mode")
    workload: str = Field(
        description="Workload SPEC of at most 20,000 requests, or an uploaded one: wl_...[,...]; "
        "traces of GEARSHIFT_TRACE_ROOT are for jobs"
    )
    sla: str | None = Field(default=None, description="Judge the run by it")
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED)
    kv_cache_mib: Whole = Field(default=DEFAULT_KV_CACHE_MIB, ge=1, le=2**30)
    block_size: Whole = Field(default=16, ge=1, le=1024)
    max_model_len: int | None = Field(default=None, ge=1, le=2**31 - 1, strict=True)


class PredictionView(View):
    """What the engine would do, simulated with the cost model's step times."""

    model_config = ConfigDict(extra="allow", **shown(cost_models.PREDICTION))

    cost_model_id: str
    fidelity: Fidelity
    metrics: Json = Field(description="Latencies in ms by percentile, throughput, attainment")
    intervals: Json | None = Field(description="By SLA word: value and 90 % interval")
    requests: Json = Field(description="How many ended in which way")
    sla: Json | None = Field(description="Verdict, where one was asked for")
    settings: Json
    workload: Json
    warnings: list[str]


class MetricCalibration(View):
    """One metric, predicted and then measured."""

    metric: str
    num_trials: int
    median_ratio: float = Field(description="Measured over predicted; 1 is right")
    p90_off: float = Field(
        description="90 % of the trials were off by at most this factor, either way"
    )
    inside_interval: float = Field(
        description="Share of trials whose measurement lies in the predicted 90 % interval"
    )


class CalibrationView(View):
    """How right a cost model has been."""

    model_config = shown(cost_models.CALIBRATION)

    cost_model_id: str
    held_out: Json | None = Field(
        description="Error on steps it was not fitted on; null where the document has none"
    )
    num_trials: int = Field(description="Live trials of jobs with this model, the newest 500")
    metrics: list[MetricCalibration]
