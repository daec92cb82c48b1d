"""``/v1/engines/{id}/policy``: read, wait for, patch, acknowledge, roll back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.schemas.access import Scope
from api.schemas.plain import MAX_COLUMN, PlainJson
from api.schemas.serving import (
    Acknowledge,
    ChangeSet,
    PolicyVersionView,
    PolicyView,
    RollbackRequest,
)
from api.services import effects, identity, policies, policy_acks
from api.web.auth import Caller, EngineCredential, require
from api.web.context import AppContext, get_context
from api.web.paging import NumberedPaging, link_next
from api.web.watch import Watched
from store.engines import Wish

router = APIRouter(prefix="/v1/engines/{engine_id}", tags=["policies"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Applier = Annotated[Caller, require(Scope.APPLY)]
MAX_WAIT_S = 60
LONG_WAIT_S = 1.0


@router.get(
    "/policy",
    operation_id="get_engine_policy",
    summary="Read an engine's policy",
    response_model=PolicyView,
    responses={204: {"description": "No newer version came within wait_s"}},
)
async def get(
    engine_id: str,
    response: Response,
    context: Context,
    _: Reader,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    after_version: Annotated[int | None, Query(ge=0, le=MAX_COLUMN)] = None,
    credential: EngineCredential = None,
) -> PolicyView | Response:
    """The policy asked for and in force; with ``after_version`` wait for another version.

    An engine that sends a credential learns here, too, that it is not this engine any more (403).
    """
    found = await _wait_for(context, engine_id, after_version, wait_s, credential)
    if found is None:
        return Response(status_code=204)
    response.headers["ETag"] = policies.etag_of(found)
    return found


@router.patch("/policy", operation_id="patch_engine_policy", summary="Change an engine's policy")
async def patch(
    engine_id: str,
    response: Response,
    context: Context,
    caller: Applier,
    body: Annotated[
        PlainJson,
        Body(
            media_type="application/merge-patch+json",
            description=(
                "Knobs of the engine, `sla` and `guards`. `guards.max_gpus` and "
                "`guards.drain_s` (seconds that replicas which leave may take to finish their "
                "requests) are enforced; "
                "`guards.min_interval_s` and `guards.max_reshapes_per_h` hold back changes of "
                "capacity that the controller makes by itself. `guards.on_drift` says what becomes "
                "of settings that somebody changes at the engine itself: `pause` (the controller "
                "waits), `adopt` or `revert`."
            ),
            examples=[{"caps": {"max_num_seqs": 96}, "shift": {"threshold_tokens": 128}}],
        ),
    ],
    if_match: Annotated[str | None, Header()] = None,
    dry_run: bool = False,
    reason: Annotated[str, Query(max_length=500)] = "changed by hand",
) -> ChangeSet:
    """JSON Merge Patch; ``dry_run`` only says what would change, what it costs, and what it would
    have done in the last hours (``effect``, simulated in seconds)."""

    def write() -> ChangeSet:
        with context.database.begin() as uow:
            return policies.patch(
                uow,
                engine_id,
                body,
                if_match=if_match,
                is_dry_run=dry_run,
                caller=caller,
                reason=reason,
            )

    answer = await run_in_threadpool(write)
    if dry_run:
        answer = await effects.with_effect(
            answer,
            context.database,
            context.aside,
            engine_id,
            lambda uow, engine: policies.patched(uow, engine, body).settings,
        )
    response.headers["ETag"] = policies.etag_of(answer.policy)
    return answer


@router.get(
    "/policy/versions",
    operation_id="list_policy_versions",
    summary="List versions of an engine's policy",
)
def versions(
    engine_id: str,
    page: NumberedPaging,
    request: Request,
    response: Response,
    context: Context,
    _: Reader,
) -> list[PolicyVersionView]:
    """Versions, newest first."""
    with context.database.read() as uow:
        found = uow.policies.list_page(uow.engines.get(engine_id).id, page)
    link_next(request, response, found)
    return [PolicyVersionView.model_validate(row) for row in found.items]


@router.post(
    "/policy/versions/{version}:acknowledge",
    operation_id="acknowledge_policy_version",
    summary="Acknowledge a policy version",
)
def acknowledge(
    engine_id: str,
    version: Annotated[int, Path(ge=1, le=MAX_COLUMN)],
    body: Acknowledge,
    context: Context,
    caller: Applier,
    credential: EngineCredential = None,
) -> PolicyView:
    """What the engine did about a version, from the engine itself."""
    with context.database.begin() as uow:
        answer, is_news = policy_acks.acknowledge(
            uow, engine_id, version, body, credential=credential, caller=caller
        )
    if is_news:
        context.metrics.count_acknowledgement(body)
    return answer


@router.post(
    ":rollback", operation_id="roll_back_engine_policy", summary="Roll back an engine's policy"
)
def rollback(
    engine_id: str, body: RollbackRequest, response: Response, context: Context, caller: Applier
) -> ChangeSet:
    """Write an earlier version's document as the next version; each time one further back, unless
    the version is named."""
    with context.database.begin() as uow:
        answer = policies.rollback(uow, engine_id, body.version, caller=caller, reason=body.reason)
    context.metrics.rollbacks.labels(reason="operator").inc()
    response.headers["ETag"] = policies.etag_of(answer.policy)
    return answer


async def _wait_for(
    context: AppContext,
    engine_id: str,
    after_version: int | None,
    wait_s: float,
    credential: str | None,
) -> PolicyView | None:
    """The policy once its version differs from ``after_version``, None when none came in time."""
    # Who waits for long is told of what the last look missed; who does not must be told now.
    wish = await context.watch.find_wish(engine_id) if wait_s >= LONG_WAIT_S else None
    if wish is None or wish.version != after_version or not _is_own(wish, credential):
        found = await run_in_threadpool(_read, context, engine_id, credential)
        if found.version != after_version:
            return found
    if await context.watch.wait(Watched.POLICY, engine_id, seen=after_version, timeout_s=wait_s):
        return await run_in_threadpool(_read, context, engine_id, credential)
    return None


def _is_own(wish: Wish, credential: str | None) -> bool:
    return credential is None or identity.is_proof(wish.credential_hash, credential)


def _read(context: AppContext, engine_id: str, credential: str | None) -> PolicyView:
    with context.database.read() as uow:
        engine = uow.engines.get(engine_id)
        if credential is not None:
            identity.require_own(engine, credential)
        return policies.view(engine, policies.current(uow, engine))
