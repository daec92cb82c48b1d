"""Engines, heartbeats, policies, decisions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from api.schemas.base import FEW_FIELDS, Body, BoundedBody, Json, View, shown
from api.schemas.examples import engines, policies
from api.schemas.plain import (
    MAX_ARRIVED,
    MAX_COLUMN,
    MAX_JSON_INT,
    MAX_SECONDS,
    MIN_WINDOW_S,
    Count,
    DeviceIndex,
    Milliseconds,
    Seconds,
    Tokens,
    Version,
    Whole,
    check_public_url,
    check_rising,
)
from engine.policy.document import KnobClass
from engine.server.takes import FIRST_FAULT, NUMBER
from engine.spec.measurement import Outcome
from engine.spec.modes import MODE_PATTERN, Mode
from store.models import AckState
from tuner.hardware.device import MAX_DEVICES

# One heartbeat holds about a second of traffic.
MAX_REQUESTS = 20_000
# No engine has as many knobs.
MOST_CHANGES = 200


DEVICES = Field(
    default=None,
    max_length=MAX_DEVICES,
    fail_fast=True,
    description="Devices it holds, by index; null: as many as its ranks; empty: none (paced)",
)


class EngineRegister(Body):
    """What an engine says about itself; the same name is the same engine."""

    model_config = shown(engines.REGISTER)

    name: str = Field(min_length=1, max_length=120)
    model_name: str = Field(max_length=200)
    public_url: Annotated[str, AfterValidator(check_public_url)] | None = Field(
        default=None, max_length=300, description="Where people reach it; the service calls nobody"
    )
    host: str = Field(max_length=200)
    devices: list[DeviceIndex] | None = DEVICES
    model: Json = Field(description="Shape of the model (engine ModelConfig)")
    envelope: Json = Field(description="Caps it was started with, the most they may be raised to")
    inventory: Json | None = Field(
        default=None,
        description="What its plans may use: `kind`, `max_ranks`, and memory in bytes. Plans "
        "beyond it are refused",
    )
    capabilities: Annotated[list[Json], FIRST_FAULT]
    policy: Json = Field(description="The engine's part of the policy in force")

    takes_credential: bool = Field(
        default=False,
        description="Whether it keeps the credential of the answer and sends it from then on as "
        "`Gearshift-Engine-Credential`. Engines of earlier versions do not; for them anybody with "
        "scope apply may speak",
    )


class RequestTimingIn(BoundedBody):
    """One finished request, exact: milliseconds since it was scheduled."""

    age_ms: Milliseconds = Field(description="How long before this heartbeat it was scheduled")
    token_ms: Annotated[list[Milliseconds], FIRST_FAULT, AfterValidator(check_rising)] = Field(
        description="When each output token was produced"
    )
    input_tokens: Tokens
    outcome: Outcome = Outcome.COMPLETED


class StepAggregate(BoundedBody):
    """Steps of one mode and token-count class in the window."""

    mode: Annotated[Mode, Field(pattern=MODE_PATTERN)]
    tokens_up_to: Whole = Field(
        ge=1,
        le=MAX_JSON_INT,
        description="Batched tokens per step, power-of-two class",
    )
    steps: Whole = Field(ge=1, le=MAX_JSON_INT)
    seconds: Seconds
    tokens: Count


class HeartbeatIn(Body):
    """What an engine saw since its last heartbeat."""

    model_config = shown(engines.HEARTBEAT)

    window_s: float = Field(strict=True, ge=MIN_WINDOW_S, le=MAX_SECONDS)
    arrived: Whole = Field(ge=0, le=MAX_ARRIVED, description="Requests that arrived in the window")
    policy_version: Version
    policy: Json = Field(description="The engine's part of the policy in force")
    devices: list[DeviceIndex] | None = DEVICES
    stats: Json
    requests: Annotated[
        list[RequestTimingIn], Field(max_length=MAX_REQUESTS, fail_fast=True), FEW_FIELDS
    ]
    steps: Annotated[list[StepAggregate], FIRST_FAULT, FEW_FIELDS]


class HeartbeatOut(View):
    """What the service wants from the engine."""

    model_config = shown(engines.WANTED)

    desired_version: int


def _check_changes(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MOST_CHANGES:
        raise ValueError(f"{len(given)} changes; at most {MOST_CHANGES} may be")
    return given


class Acknowledge(Body):
    """What an engine did about a policy version."""

    model_config = shown(policies.ACKNOWLEDGE)

    result: Literal["applied", "refused"]
    message: str = Field(default="", max_length=4000)
    changes: Annotated[dict[str, KnobClass], BeforeValidator(_check_changes)] = Field(
        default_factory=dict, description="Knob class per change"
    )
    seconds: Seconds | None = None
    transition: Json | None = Field(
        default=None, description="How replicas started and left for it, and what that took"
    )
    lost_requests: Count = Field(default=0, description="Requests the change ended in error")
    policy: Json = Field(description="The engine's part of the policy now in force")


class EngineView(View):
    """A registered engine."""

    model_config = ConfigDict(protected_namespaces=(), **shown(engines.ENGINE))

    id: str
    name: str
    system: str | None = Field(
        description="The serving system of an engine that is observed by its address; null: it "
        "reports itself"
    )
    model_name: str
    public_url: str | None
    host: str
    model: Json
    envelope: Json
    inventory: Json | None
    effective_policy: Json
    desired_version: int
    applied_version: int
    recommendation_id: str | None
    sla: str | None
    is_alive: bool
    registered_at: datetime
    last_heartbeat_at: datetime | None


class RegisteredView(EngineView):
    """A registered engine, and its credential where it got a fresh one: it is shown only now."""

    model_config = shown(engines.REGISTERED)

    credential: str | None


class PolicyView(View):
    """The policy of an engine: what is asked for and what is in force."""

    model_config = shown(policies.POLICY)

    engine_id: str
    version: int
    requested: Json = Field(
        description="The whole document. Its `guards.min_interval_s`, "
        "`guards.max_reshapes_per_h`, `guards.allow_shedding`, `guards.retunes_per_day` and "
        "`guards.apply_retuned` hold back what the controller does by itself"
    )
    effective: Json = Field(description="The engine's part of the policy in force")
    applied_version: int
    ack_state: AckState
    ack_message: str | None


class ChangeSet(View):
    """What a patch changes (or would change, with ``dry_run``)."""

    model_config = shown(policies.CHANGE)

    is_dry_run: bool
    changes: list[Json]
    predicted: Json | None
    effect: Json | None = Field(
        default=None,
        description="Of a dry run: settings in force and wanted ones simulated on the engine's "
        "load of the last hours, on the same draws: `attainment` and each metric in `effects` with "
        "the 90 % interval of the change",
    )
    effect_missing: str | None = Field(
        default=None, description="Of a dry run: why there is no `effect`"
    )
    transition: Json | None = Field(
        description="Where replicas start or leave for it: how, the most devices in use on the "
        "way, and what it costs as far as the engine said when it registered"
    )
    warnings: list[str]
    policy: PolicyView


class PolicyVersionView(View):
    """One version of an engine's policy."""

    model_config = shown(policies.VERSION)

    engine_id: str
    version: int
    document: Json
    origin: str
    reason: str
    created_by: str
    created_at: datetime
    ack_state: AckState
    ack_message: str | None
    ack_changes: Json | None
    ack_seconds: float | None
    ack_transition: Json | None
    acknowledged_at: datetime | None


class RollbackRequest(Body):
    """Go back to an earlier version; without ``version`` to the one applied before this, and with
    each further call to the one before that."""

    model_config = shown(policies.ROLLBACK)

    version: Annotated[int, Field(ge=1, le=MAX_COLUMN), NUMBER] | None = None
    reason: str = Field(default="rollback", max_length=500)


class DecisionView(View):
    """One decision of the controller."""

    model_config = shown(policies.DECISION)

    id: int
    engine_id: str
    action: str
    reason: str
    band_index: int | None
    settings: Json | None
    rejected: list[Any]
    observed: Json
    policy_version: int | None
    created_at: datetime


class ForecastView(View):
    """What the next minutes are expected to bring to an engine."""

    model_config = shown(policies.FORECAST)

    engine_id: str
    forecaster: str = Field(description="Which was best on this engine's own history")
    slot_s: float = Field(description="Seconds of one rate")
    rates_rps: list[float] = Field(description="Mean requests per second of the slots that follow")
    expected_peak_rps: float = Field(description="Of the busiest slot, with no margin for errors")
    held_peak_rps: float = Field(
        description="With as much of the margin as the slow loop holds now: less, the fewer miss"
    )
    peak_rps: float = Field(description="With all of the margin: no slot is busier, with `chance`")
    chance: float
    mean_input_tokens: float | None = Field(
        description="Requests count as so many of these lengths, those of the capacity table in "
        "force; null: as they came"
    )
    mean_output_tokens: float | None
    history_slots: int
    backtests: int = Field(description="Earlier moments that were forecast and compared")
    peak_error: float | None = Field(
        description="Mean of |log(peak / peak forecast)| over these; null where there are none"
    )
