"""Engines that are not ours: observed by their address, advised, restarted."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from api.schemas.base import Body, Json, View, shown
from api.schemas.examples import observed
from api.schemas.plain import MAX_COLUMN, check_public_url
from engine.server.takes import NUMBER
from engine.spec.inventory import MOST_RANKS
from policies.advice import AdviceReason
from store.models import Sight
from tuner.hardware.precision import Precision

# The model of a server for which nobody named one.
UNNAMED = "MODEL"
Cap = Annotated[int, Field(ge=1, le=MAX_COLUMN), NUMBER]


def _check_server_url(url: str) -> str:
    """As :func:`check_public_url`, for an address that /metrics is put behind."""
    parts = urlsplit(check_public_url(url))
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/metrics"):
        raise ValueError("name the server alone, without /metrics and what may follow it")
    return url


class ObserveRequest(Body):
    """A server that runs, and what it was started with; the same name is the same engine."""

    model_config = shown(observed.OBSERVE)

    name: str = Field(min_length=1, max_length=120)
    system: Literal["vllm", "sglang"]
    url: Annotated[str, AfterValidator(_check_server_url)] = Field(
        max_length=280, description="Its address, without /metrics, which the service reads there"
    )
    plan: str = Field(
        min_length=1, max_length=60, description="The plan it runs, as in tp=2 or dp=2,tp=4"
    )
    max_num_seqs: Cap | None = Field(
        default=None, description="Sequences per step; null: the system's default"
    )
    max_num_batched_tokens: Cap | None = Field(
        default=None, description="Tokens per step; null: the system's default"
    )
    # A word of the command by which the service may restart the server: never one of its options.
    model: str = Field(
        default=UNNAMED,
        min_length=1,
        max_length=300,
        pattern=r"^[^-\s]",
        description="What launch commands name",
    )
    precision: Precision = Precision.BF16
    max_model_len: Cap | None = None
    max_devices: Annotated[int, Field(ge=1, le=MOST_RANKS), NUMBER] | None = Field(
        default=None, description="The most devices that advice may name; null: as the table has"
    )
    sla: str | None = Field(default=None, max_length=1000)


class BindRequest(Body):
    """What an engine is to be held to by the slow loop."""

    model_config = shown(observed.BIND)

    capacity_table: Json = Field(description="As `gearshift plan --capacity-table` writes it")
    reason: str = Field(default="bound", max_length=500)


class CommandView(View):
    """The words that start a server on the advised entry."""

    command: str
    note: str | None = Field(description="What its flags have no words for")
    kubernetes: str = Field(description="A Deployment, as YAML")
    compose: str = Field(description="A Compose file, as YAML")


class AdviceView(View):
    """The entry of its capacity table that an observed engine should be on."""

    model_config = shown(observed.ADVICE)

    engine_id: str
    system: str
    reason: AdviceReason
    observed_rps: float | None = Field(description="What comes now, of the table's lengths")
    peak_rps: float | None = Field(
        description="The peak that is forecast, with the margin that is held"
    )
    needed_rps: float | None = Field(description="What has to be carried")
    current: Json | None = Field(description="The entry of the plan that runs; null: it has none")
    entry: Json | None = Field(description="Where it should be; null: nobody knows its load")
    is_there: bool = Field(description="Whether it runs the settings of that entry already")
    num_devices: int | None
    left_out: list[str] = Field(description="What of the entry's settings cannot be told to it")
    launch: CommandView | None
    applied_by: str = Field(description="Who restarts it: `hook`, `command`, or `hand`")


class ShareView(View):
    """A share that was read from buckets: it lies from `low` to `high`."""

    low: float
    value: float
    high: float


class RestartsView(View):
    """How the service restarts the server, and how that went last."""

    by: str = Field(description="hook or command")
    failures: int
    retry_at: datetime | None
    message: str
    version: int | None


class ObservationView(View):
    """What is seen of a server, over the last control window."""

    model_config = ConfigDict(protected_namespaces=(), **shown(observed.OBSERVATION))

    engine_id: str
    system: str
    url: str
    sight: Sight = Field(description="Whether it is seen, and why not")
    since: datetime
    detail: str
    restarted_at: datetime | None = Field(description="When its counters last began anew")
    missing: list[str] = Field(description="What its page has no series for")
    window_s: float | None
    arrived_rps: float | None
    finished_rps: float | None
    running: int | None
    waiting: int | None
    kv_usage: float | None
    prompt_tokens_per_s: float | None
    generation_tokens_per_s: float | None
    prefix_hit_rate: float | None
    mean_input_tokens: float | None
    mean_output_tokens: float | None
    attainment: ShareView | None = Field(
        description="Of requests that met every bound of the SLA on a request; buckets tell it "
        "exactly only where a bound is an edge"
    )
    is_sla_met: bool | None
    judges_tpot_by_itl: bool = Field(
        description="Whether gaps between tokens stand for TPOT, which this release does not count"
    )
    metrics: Json = Field(description="Latencies from buckets, by the names of an SLA")
    load_band: int | None = Field(
        description="The band of the schedule in force that the load belongs to"
    )
    restarts: RestartsView | None = Field(description="null: the service cannot restart it")
