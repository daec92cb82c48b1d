"""Uploaded workloads."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from api.schemas.base import Json, View, shown
from api.schemas.examples import workloads


class WorkloadSummary(View):
    """An uploaded trace and how much it is."""

    model_config = shown(workloads.SUMMARY)

    id: str = Field(description="Name it as the workload of a tuning job: wl_...[,seconds=60,...]")
    name: str
    form: str = Field(description="Format it is read as: azure, burstgpt, mooncake, csv, ...")
    num_bytes: int
    sha256: str = Field(description="Of the bytes as they were uploaded")
    rows: int = Field(description="Requests: rows with output tokens")
    span_s: float = Field(description="First to last arrival")
    rate_rps: float | None = Field(description="Requests per second over the span")
    created_by: str
    created_at: datetime


class WorkloadView(WorkloadSummary):
    """An uploaded trace and the shape of its traffic."""

    model_config = shown(workloads.WHOLE)

    gap_cv: float | None = Field(description="Standard deviation over mean of gaps of arrivals")
    peak_to_mean_per_minute: float | None = Field(
        description="Requests of the busiest minute over the mean; null within one minute"
    )
    input_tokens: Json = Field(description="mean, p50, p95 and max")
    output_tokens: Json = Field(description="mean, p50, p95 and max")
    joint_histogram: Json = Field(
        description="Counts over powers of two of input (rows) and output (columns) length"
    )
    over_time: Json | None = Field(
        default=None,
        description="`counts` of arrivals in stretches of `bin_s` seconds, from the first on; "
        "null: uploaded to an earlier version",
    )
    spread_s: float = Field(description="Above 0: stamps this coarse; arrivals are spread inside")
    cuts: list[Json] = Field(description="Rows that are left out, as they have no output")
