"""Rollouts: a candidate policy, proven before it spreads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from api.schemas.base import Body, Json, Part, View, shown
from api.schemas.examples import rollouts
from api.schemas.plain import MAX_COLUMN, MAX_SECONDS, PlainJson, Seconds, Whole
from engine.server.takes import NUMBER
from policies.rollout import FEW_REQUESTS, RolloutLimits
from store.models import RolloutState

DEFAULTS = RolloutLimits()
Some = Annotated[float, Field(strict=True, gt=0, le=MAX_SECONDS, allow_inf_nan=False)]


class ReplayIn(Part):
    """How the candidate is simulated on the engine's last hours before it serves anybody."""

    skip: bool = Field(default=False, strict=True, description="Do not simulate it")
    hardware: str | None = Field(
        default=None, max_length=200, description="Described hardware of /v1/hardware, as 8xh200"
    )
    cost_model_id: str | None = Field(
        default=None,
        max_length=40,
        description="Step model; without this and `hardware` those of the recommendation in force",
    )


class RolloutLimitsIn(Part):
    """How the candidate is compared, and the most it may touch before that is decided."""

    slice_s: Some = Field(default=DEFAULTS.slice_s, description="Seconds of one turn")
    settle_s: Seconds = Field(
        default=DEFAULTS.settle_s, description="Arrivals that do not count, after a switch"
    )
    wait_s: Seconds = Field(
        default=DEFAULTS.wait_s, description="Seconds until what arrived in a slice has ended"
    )
    tolerance: float = Field(
        default=DEFAULTS.tolerance,
        ge=0,
        lt=1,
        description="Worse is: attainment lower by more than this",
    )
    alpha: float = Field(
        default=DEFAULTS.alpha, gt=0, lt=0.5, description="Chance of a wrong verdict, of each kind"
    )
    max_exposed_s: Some = Field(
        default=DEFAULTS.max_exposed_s,
        description="Seconds that the candidate may serve before it is decided",
    )
    max_exposed_requests: Annotated[int, Field(ge=1, le=MAX_COLUMN), NUMBER] | None = None
    few_requests: Annotated[int, Field(ge=0, le=MAX_COLUMN), NUMBER] | None = Field(
        default=None,
        description="A candidate that has met fewer after `max_exposed_s` may serve twice as long; "
        f"by default {FEW_REQUESTS}, and 0 where `max_exposed_s` is given",
    )
    max_duration_s: Some = DEFAULTS.max_duration_s
    min_requests: Whole = Field(default=DEFAULTS.min_requests, ge=1, le=MAX_COLUMN)

    @property
    def limits(self) -> RolloutLimits:
        """Raises PolicyInputError for limits that do not go together."""
        given = self.model_dump()
        if self.few_requests is None:
            given["few_requests"] = 0 if "max_exposed_s" in self.model_fields_set else FEW_REQUESTS
        return RolloutLimits(**given)


class RolloutCreate(Body):
    """A candidate: a patch of the engine's policy, or a recommendation."""

    model_config = shown(rollouts.BODY)

    engine_id: str = Field(min_length=1, max_length=40)
    patch: PlainJson | None = Field(
        default=None, description="JSON Merge Patch of the policy; knobs that need no new ranks"
    )
    recommendation_id: str | None = Field(default=None, max_length=40)
    reason: str = Field(default="rollout", max_length=500)
    replay: ReplayIn = ReplayIn()
    limits: RolloutLimitsIn = RolloutLimitsIn()

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.patch is None) == (self.recommendation_id is None):
            raise ValueError("name either a patch or a recommendation_id")
        return self


class EffectView(View):
    """Attainment of the candidate less that of control, over the pairs so far."""

    mean: float | None
    low: float = Field(description="Above the effect with a chance of at most `limits.alpha`")
    high: float


class CanaryView(View):
    """How far the canary is."""

    pairs: int = Field(description="Pairs of slices that were counted")
    set_aside: int = Field(description="Pairs that said nothing: too few requests, or data missing")
    control_attainment: float | None
    candidate_attainment: float | None
    effect: EffectView
    arm: str | None = Field(description="Which of the two the engine is asked to run now")
    exposed_s: float
    exposed_requests: int


class RolloutView(View):
    """A rollout as it stands."""

    model_config = shown(rollouts.ROLLOUT)

    id: str
    engine_id: str
    state: RolloutState
    code: str = Field(description="Why it stands there, of a closed set")
    reason: str
    is_undecided: bool = Field(
        description="Taken back before it was known whether the candidate is worse"
    )
    candidate: Json = Field(description="The policy document that is rolled out")
    control_version: int = Field(description="The policy version that it is compared with")
    version: int = Field(description="The last policy version that the rollout wrote")
    limits: Json
    replay: Json | None = Field(description="How the replay is made; null: skipped")
    verdict: Json | None = Field(description="What the replay said")
    canary: CanaryView | None
    created_by: str
    created_at: datetime
    finished_at: datetime | None


class RolloutDetail(RolloutView):
    """A rollout with every state it has had."""

    model_config = shown(rollouts.DETAIL)

    transitions: list[Json]
