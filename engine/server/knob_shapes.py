"""The shapes of what the knob plane answers, for its description; see ``shapes``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from engine.policy.document import KnobClass
from engine.server import example_answers as examples
from engine.server.shapes import Shape, shown
from engine.spec.modes import MODE_PATTERN, PIN_PATTERN
from engine.spec.settings import Order
from engine.transition.planning import Way

ModeName = Annotated[str, Field(pattern=MODE_PATTERN, description="base, shift, or a rung: 4x2")]
PinName = Annotated[str, Field(pattern=PIN_PATTERN, description="table, auto, or one mode")]


class PlanShape(Shape):
    """Degrees of parallelism."""

    dp: int
    pp: int
    sp: int
    tp: int


class ShiftShape(Shape):
    """Whether small steps run as full TP, and up to how many tokens."""

    enabled: bool
    threshold_tokens: int
    rungs: list[ModeName] | None = Field(
        default=None, description="Modes that steps may run in, where they are not all"
    )
    rung_thresholds: dict[ModeName, int] | None = Field(
        default=None, description="Tokens up to which a rung between base and shift runs"
    )


class CapsShape(Shape):
    """Limits the scheduler keeps; null: none."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_ms: float | None
    max_queue: int | None


class SchedulerShape(Shape):
    """How requests are admitted."""

    order: Order


class AdmissionShape(Shape):
    """The most requests that are let in; beyond them callers get 429."""

    rate_rps: float
    burst_requests: int | None = Field(description="At once; null: two seconds' worth")


class PolicyShape(Shape):
    """A version of the engine's policy."""

    model_config = shown(examples.POLICY)

    schema_: Literal["policy/v1"] = Field(alias="schema")
    engine: str
    version: int
    plan: PlanShape
    shift: ShiftShape
    caps: CapsShape
    scheduler: SchedulerShape
    mode: PinName
    admission: AdmissionShape | None = Field(
        default=None, description="Left out where whatever comes is let in"
    )


class KnobChangeShape(Shape):
    """One knob before and after."""

    knob: str
    from_: Any = Field(alias="from")
    to: Any
    class_: KnobClass = Field(alias="class")
    why: str | None = Field(default=None, description="Of a plan: what makes it a reshape")


class TransitionShape(Shape):
    """How replicas start and leave for a change, and what that takes."""

    way: Way = Field(description="add, remove, blue_green, rolling or stop_and_carry")
    peak_devices: int = Field(description="The most devices in use at once on the way")
    least_devices: int = Field(description="The fewest that serve on the way; 0: requests wait")
    start_s: float | None = Field(
        description="Seconds until the last new replica serves; null where nothing is known"
    )
    drain_s: float = Field(
        description="Seconds of waiting for replicas that leave; an estimate is the most it takes"
    )
    is_measured: bool = Field(description="Whether it was so here, else it is an estimate")
    carried: int | None = Field(
        description="After the change: requests that went on on other replicas"
    )


class PolicyChangeShape(Shape):
    """What a patch changed, or would (``dry_run``)."""

    model_config = shown(examples.CHANGE)

    requested: dict[str, Any]
    effective: PolicyShape
    changes: dict[str, KnobClass]
    class_: KnobClass | None = Field(alias="class", description="The dearest of the changes")
    diff: list[KnobChangeShape]
    warnings: list[str]
    dry_run: bool
    effective_step: int = Field(default=0, description="Of a change: the first step under it")
    seconds: float = Field(default=0.0, description="Of a change: how long it took")
    transition: TransitionShape | None = Field(
        default=None, description="Where replicas start or leave for it: how"
    )


class WayShape(Shape):
    """One way to start and end ranks, and what it costs here."""

    way: Way
    start_s: float | None
    drain_s: float
    is_measured: bool


class KnobShape(Shape):
    """One thing that may be changed, and its range."""

    name: str
    class_: KnobClass = Field(alias="class")
    current: Any
    minimum: float | None
    maximum: float | None
    choices: list[str] | None
    hot_choices: list[str] | None = Field(
        description="Of the plan: those that are hot, as ranks hold their shards"
    )
    measured_cost_s: float | None
    ways: list[WayShape] = Field(
        description="Of knobs that start and end ranks: how, and what it costs; estimated until "
        "it was measured here"
    )


class CapabilitiesShape(Shape):
    """Every knob of the engine."""

    model_config = shown(examples.CAPABILITIES)

    engine: str
    plan: str
    max_model_len: int
    envelope: CapsShape
    knobs: list[KnobShape]


class BucketShape(Shape):
    """Times of steps of up to this many tokens: ``base_s``, ``shift_s``, and one for each rung."""

    model_config = ConfigDict(extra="allow")

    tokens: int
    mode: ModeName
    is_measured: bool


class ModeTableShape(Shape):
    """Measured times of one replica's steps."""

    schema_: str = Field(alias="schema")
    fingerprint: str
    plan: str
    device: str
    num_timed: int
    threshold_tokens: int
    largest_shift_tokens: int
    buckets: list[BucketShape]


class ModeRuleShape(Shape):
    """What decides the mode of each step; a table per replica, null where none was measured."""

    model_config = shown(examples.MODE_RULE)

    engine: str
    mode: PinName
    threshold_tokens: int
    rung_thresholds: dict[ModeName, int]
    rungs: list[ModeName]
    tables: list[ModeTableShape | None]
