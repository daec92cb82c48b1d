"""The load that settings carry on described hardware."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.schemas.base import Body, Json, View, shown
from api.schemas.examples.capacity import ASKED, FOUND
from api.schemas.plain import Whole
from tuner.search.spec import MAX_SEED


class CapacityRequest(Body):
    """Settings on described hardware, the traffic they would have, and what it must meet."""

    model_config = shown(ASKED)

    model: str = Field(
        min_length=1, max_length=4096, description="Name of a model, as in GET /v1/models"
    )
    hardware: str = Field(min_length=1, max_length=200, description="As in 8xh200")
    settings: Json = Field(
        description="As an engine's policy has them: plan, shift, caps, mode; without caps the "
        "backend's own"
    )
    workload: str = Field(
        min_length=1,
        description="Workload SPEC of at most 2,000 requests; its arrivals are thinned or repeated",
    )
    sla: str = Field(min_length=1, description="As in p95_ttft_ms<=500,p95_tpot_ms<=20")
    backend: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Of GET /v1/backends, as vllm, vllm@0.12 or vllm@0.12,async_scheduling=on",
    )
    dtype: str | None = Field(
        default=None, min_length=1, max_length=20, description="auto, bf16, fp8, ..."
    )
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED)
    draws: Whole = Field(default=5, ge=2, le=20, description="Draws of the arrivals at each rate")
    block_size: Whole = Field(default=16, ge=1, le=1024)
    max_model_len: int | None = Field(default=None, ge=1, le=2**31 - 1, strict=True)


class CapacityView(View):
    """The highest load within the SLA, simulated."""

    model_config = ConfigDict(**shown(FOUND), extra="allow")

    sla: str
    asked: Json = Field(description="The workload's own load")
    capacity: Json = Field(
        description="load (null: none is carried), its 90 % interval low to high, binding, cliff"
    )
    rates: list[Json] = Field(description="Every load that was simulated")
    settings: Json
    workload: Json
    warnings: list[str]
