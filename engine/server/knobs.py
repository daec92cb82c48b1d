"""The knob plane: what can be changed on this engine, at what price, and changing it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from engine.policy.document import (
    EnginePolicy,
    KnobClass,
    check_envelope,
    classify,
    moves_ranks,
)
from engine.policy.knobs import AppliedPolicy
from engine.server.errors import ApiError
from engine.server.knob_shapes import (
    CapabilitiesShape,
    ModeRuleShape,
    PolicyChangeShape,
    PolicyShape,
)
from engine.server.patch import PATCH
from engine.server.queries import unknown_parameters
from engine.server.served import ServedEngine
from engine.spec.errors import EngineError, PlanError, PolicyError, StalePolicyError
from engine.spec.held import settings_on, why_not_held
from engine.spec.plan import ParallelPlan
from engine.transition.costs import (
    DEFAULT_DRAIN_S,
    DEFAULT_LIMITS,
    MOST_DRAIN_S,
    TransitionLimits,
)

logger = logging.getLogger(__name__)

SCHEMA = "policy/v1"
LABEL_KEYS = ("schema", "engine", "version")
DrainSeconds = Annotated[
    float,
    Query(
        ge=0,
        le=MOST_DRAIN_S,
        description="How long replicas that leave may finish their requests; what is left then "
        "goes on on other replicas",
    ),
]
ETAG = {"ETag": {"schema": {"type": "string"}}}


class KnobPlane:
    """Reads and changes the policy of one engine; one change at a time."""

    def __init__(self, engine: ServedEngine, *, engine_name: str) -> None:
        self._engine = engine
        self._engine_name = engine_name
        self._lock = asyncio.Lock()

    @property
    def policy(self) -> EnginePolicy:
        """The policy in force now. Who tells more than one thing of it reads it once: others change
        it meanwhile."""
        return self._engine.policy

    def document(self, policy: EnginePolicy) -> dict[str, Any]:
        """The document of ``policy``."""
        return {
            "schema": SCHEMA,
            "engine": self._engine_name,
            "version": policy.version,
            **policy.settings.to_json(),
        }

    def etag(self, policy: EnginePolicy) -> str:
        """The strong entity tag of its document: its version and a digest of its content."""
        text = json.dumps(self.document(policy), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f'"{policy.version}-{digest}"'

    def capabilities(self) -> dict[str, Any]:
        """Every knob with class, range, current value and measured cost."""
        engine = self._engine
        return {
            "engine": self._engine_name,
            "plan": str(engine.policy.settings.plan),
            "max_model_len": engine.max_model_len,
            "envelope": asdict(engine.envelope),
            "knobs": [knob.to_json() for knob in engine.capabilities()],
        }

    def mode_table(self) -> dict[str, Any]:
        """The rule that chooses modes, and the step times it was measured on, per replica; in the
        words of the plan whose ranks were timed.
        """
        settings = settings_on(self._engine.held_plan, self._engine.policy.settings)
        tables = self._engine.mode_tables()
        return {
            "engine": self._engine_name,
            "mode": settings.pin,
            "threshold_tokens": settings.threshold_tokens,
            "rung_thresholds": dict(settings.rung_thresholds),
            "rungs": list(settings.modes),
            "tables": [None if table is None else table.to_json() for table in tables],
        }

    async def patch(
        self,
        patch: dict[str, Any],
        *,
        if_match: str | None,
        is_dry_run: bool,
        limits: TransitionLimits = DEFAULT_LIMITS,
    ) -> JSONResponse:
        """Apply a JSON Merge Patch if ``if_match`` names the policy in force; ranks that start or
        end for it do so within ``limits``.

        Raises:
            ApiError: 428 without a precondition, 412 with a stale one, 409 beyond the envelope,
                422 for an unknown knob or a plan this model cannot run.
        """
        async with self._lock:
            old = self.policy
            self._check_precondition(if_match, old)
            new = self._merged(old, patch)
            held = self._engine.held_plan
            changes = classify(old.settings, new.settings, self._engine.envelope, held=held)
            answer: dict[str, Any] = {
                "requested": patch,
                "effective": self.document(old if is_dry_run else new),
                "changes": changes,
                "class": max(changes.values(), key=lambda c: c.rank, default=None),
                "diff": _diff(old, new, changes, held),
                "warnings": new.settings.warnings,
                "dry_run": is_dry_run,
            }
            if is_dry_run and moves_ranks(changes):
                priced = await run_in_threadpool(self._engine.preview, new, limits=limits)
                answer["transition"] = priced and priced.to_json()
            if changes and not is_dry_run:
                new = replace(new, version=old.version + 1)
                applied = await run_in_threadpool(self._apply, new, old, limits)
                answer |= {
                    "effective": self.document(new),
                    "effective_step": applied.effective_step,
                    "seconds": applied.seconds,
                    "warnings": applied.warnings,
                    "transition": applied.transition and applied.transition.to_json(),
                }
            shown = old if is_dry_run or not changes else new
            return JSONResponse(answer, headers={"ETag": self.etag(shown)})

    def _check_precondition(self, if_match: str | None, policy: EnginePolicy) -> None:
        current = self.etag(policy)
        if if_match is None:
            raise ApiError(
                428,
                "If-Match is required: read the policy first and send its ETag",
                code="precondition_required",
                headers={"ETag": current},
            )
        tags = [tag.strip() for tag in if_match.split(",")]
        if current not in tags and "*" not in tags:
            raise ApiError(
                412,
                f"If-Match {if_match} is stale; the policy in force has ETag {current}",
                code="stale_policy",
                headers={"ETag": current},
            )

    def _merged(self, old: EnginePolicy, patch: dict[str, Any]) -> EnginePolicy:
        """The policy ``old`` after the patch, checked against model and envelope."""
        document = self.document(old)
        for key in LABEL_KEYS:
            # A document that was read, edited and sent back may hold its labels, but not changed
            # ones.
            if key in patch and patch[key] != document[key]:
                raise PolicyError(f"/{key}: {patch[key]!r} cannot be set; it is {document[key]!r}")
        policy = old.merged({key: value for key, value in patch.items() if key not in LABEL_KEYS})
        try:
            self._engine.inventory.check(policy.settings.plan, self._engine.model)
        except PlanError as error:
            raise PolicyError(f"/plan: {error}") from error
        check_envelope(policy.settings.caps, self._engine.envelope)
        return policy

    def _apply(
        self, policy: EnginePolicy, old: EnginePolicy, limits: TransitionLimits
    ) -> AppliedPolicy:
        """Apply, unless a control plane was quicker: its change must not be undone unseen."""
        try:
            return self._engine.apply(policy, expected=old, limits=limits)
        except StalePolicyError:
            raise
        except (PolicyError, PlanError) as error:
            needs = getattr(error, "needs", None)
            raise PolicyError(str(error), needs=needs) from error
        except EngineError as error:
            logger.error("the policy was not applied: %s", error)
            raise ApiError(
                503,
                "the change failed and the old policy is in force; the engine's log says why",
                code="apply_failed",
            ) from error


def knob_router(plane: KnobPlane) -> APIRouter:
    """``/v1/engine``: capabilities, policy and mode table."""
    router = APIRouter(
        prefix="/v1/engine", tags=["engine"], dependencies=[Depends(_refuse_unknown_parameters)]
    )

    @router.get(
        "/capabilities",
        operation_id="getCapabilities",
        summary="List the engine's knobs",
        responses={200: {"model": CapabilitiesShape}},
    )
    async def capabilities() -> dict[str, Any]:
        """Every knob with its class, range, value now and measured cost of a change."""
        return await run_in_threadpool(plane.capabilities)

    @router.get(
        "/policy",
        operation_id="getPolicy",
        summary="Read the policy in force",
        responses={200: {"model": PolicyShape, "headers": ETAG}},
    )
    async def get_policy() -> JSONResponse:
        """The policy document in force; its ``ETag`` is what a change must name."""
        policy = plane.policy
        return JSONResponse(plane.document(policy), headers={"ETag": plane.etag(policy)})

    @router.patch(
        "/policy",
        operation_id="patchPolicy",
        summary="Change the policy",
        responses={200: {"model": PolicyChangeShape, "headers": ETAG}},
        openapi_extra=PATCH,
    )
    async def patch_policy(
        request: Request, dry_run: bool = False, drain_s: DrainSeconds = DEFAULT_DRAIN_S
    ) -> JSONResponse:
        """Change knobs by JSON Merge Patch; ``dry_run`` only tells the changes and their cost."""
        patch = await _read_patch(request)
        if_match = request.headers.get("if-match")
        limits = TransitionLimits(drain_s=drain_s)
        return await plane.patch(patch, if_match=if_match, is_dry_run=dry_run, limits=limits)

    @router.get(
        "/mode-table",
        operation_id="getModeTable",
        summary="Read the mode table",
        responses={200: {"model": ModeRuleShape}},
    )
    async def mode_table() -> dict[str, Any]:
        """The rule that chooses each step's mode, and the step times it was measured on."""
        return await run_in_threadpool(plane.mode_table)

    return router


async def _refuse_unknown_parameters(request: Request) -> None:
    for detail in unknown_parameters(request).values():
        raise ApiError(422, detail, code="invalid_request")


async def _read_patch(request: Request) -> dict[str, Any]:
    try:
        patch = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(422, f"the body is not JSON: {error}", code="invalid_request") from error
    if not isinstance(patch, dict):
        raise ApiError(422, "a merge patch is a JSON object", code="invalid_request")
    return patch


def _diff(
    old: EnginePolicy, new: EnginePolicy, changes: dict[str, KnobClass], held: ParallelPlan
) -> list[dict[str, Any]]:
    """Each changed knob with its value before and after, and the class of the change; of a plan
    that takes a reshape also why.
    """
    before, after = old.settings.to_json(), new.settings.to_json()
    plan = new.settings.plan
    why = why_not_held(replace(held, dp=plan.dp), plan)
    return [
        {
            "knob": knob,
            "from": _value_at(before, knob),
            "to": _value_at(after, knob),
            "class": kind,
            **({"why": why} if knob == "plan" and why else {}),
        }
        for knob, kind in changes.items()
    ]


def _value_at(document: dict[str, Any], knob: str) -> Any:
    if knob == "plan":
        return {"plan": document["plan"], "shift": document["shift"]["enabled"]}
    value: Any = document
    for key in knob.split("."):
        value = (value or {}).get(key)  # what is as by default may be left out
    return value
