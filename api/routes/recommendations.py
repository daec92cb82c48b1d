"""``/v1/recommendations``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.schemas.access import Scope
from api.schemas.launch import LaunchView
from api.schemas.serving import ChangeSet
from api.schemas.tuning import ApplyRequest, RecommendationView
from api.services import effects, policies, recommendations
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.paging import Paging, link_next
from tuner.launch.command import System

router = APIRouter(prefix="/v1/recommendations", tags=["recommendations"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Applier = Annotated[Caller, require(Scope.APPLY)]


@router.get("", operation_id="list_recommendations", summary="List recommendations")
def list_page(
    page: Paging, request: Request, response: Response, context: Context, _: Reader
) -> list[RecommendationView]:
    """Recommendations, newest first."""
    with context.database.read() as uow:
        found = uow.recommendations.list_page(page)
        link_next(request, response, found)
        return [RecommendationView.model_validate(row) for row in found.items]


@router.get(
    "/{recommendation_id}", operation_id="get_recommendation", summary="Read a recommendation"
)
def get(recommendation_id: str, context: Context, _: Reader) -> RecommendationView:
    """A recommendation with its schedule."""
    with context.database.read() as uow:
        return RecommendationView.model_validate(uow.recommendations.get(recommendation_id))


@router.get(
    "/{recommendation_id}/export",
    operation_id="export_recommendation",
    summary="Read how to start a recommendation elsewhere",
    responses={409: {}},
)
def export(
    recommendation_id: str,
    context: Context,
    _: Reader,
    system: Annotated[System, Query(alias="format", description="The serving system")],
) -> LaunchView:
    """The command that starts its settings on a serving system; 409 with the reason where that
    cannot run them."""
    with context.database.read() as uow:
        return recommendations.export(uow, recommendation_id, system)


@router.post(
    "/{recommendation_id}:apply",
    operation_id="apply_recommendation",
    summary="Apply a recommendation to an engine",
)
async def apply(
    recommendation_id: str,
    body: ApplyRequest,
    response: Response,
    context: Context,
    caller: Applier,
    dry_run: bool = False,
) -> ChangeSet:
    """Make it the engine's next policy version and hand its schedule to the controller;
    ``dry_run`` only says what would change, what it costs, and what it would have done in the last
    hours (``effect``, simulated in seconds)."""

    def write() -> ChangeSet:
        with context.database.begin() as uow:
            return recommendations.apply(
                uow,
                recommendation_id,
                body.engine_id,
                caller=caller,
                reason=body.reason,
                is_dry_run=dry_run,
            )

    answer = await run_in_threadpool(write)
    if dry_run:
        answer = await effects.with_effect(
            answer,
            context.database,
            context.aside,
            body.engine_id,
            lambda uow, _: recommendations.settings_of(uow, recommendation_id),
        )
    response.headers["ETag"] = policies.etag_of(answer.policy)
    return answer
