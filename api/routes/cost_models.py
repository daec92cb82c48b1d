"""``/v1/cost-models``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import JSONResponse

from api.schemas.access import Scope
from api.schemas.prediction import CalibrationView, PredictionView, PredictRequest
from api.schemas.tuning import CostModelCreate, CostModelSummary, CostModelView
from api.services import cost_models
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context
from api.web.errors import ApiError, FieldError
from api.web.idempotency import Answer, IdempotencyHeader, answer_once
from api.web.paging import Paging, link_next
from store import UnitOfWork

router = APIRouter(prefix="/v1/cost-models", tags=["cost models"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]
Tuner = Annotated[Caller, require(Scope.TUNE)]
MAX_FINGERPRINT = 120


@router.post(
    "",
    status_code=201,
    operation_id="create_cost_model",
    summary="Keep a cost model",
    response_model=CostModelView,
)
def create(
    body: CostModelCreate,
    request: Request,
    context: Context,
    caller: Tuner,
    key: IdempotencyHeader = None,
) -> JSONResponse:
    """Keep a step model that was fitted elsewhere."""
    fingerprint = _fingerprint(body)

    def run(uow: UnitOfWork) -> Answer:
        row = uow.cost_models.add(
            fingerprint=fingerprint, document=body.document, created_by=caller.actor
        )
        headers = {"Location": f"/v1/cost-models/{row.id}"}
        return Answer(status=201, body=CostModelView.model_validate(row).to_json(), headers=headers)

    return answer_once(context, caller, request, key=key, body=body.document, create=run)


@router.get("", operation_id="list_cost_models", summary="List cost models")
def list_page(
    page: Paging, request: Request, response: Response, context: Context, _: Reader
) -> list[CostModelSummary]:
    """Cost models, newest first."""
    with context.database.read() as uow:
        found = uow.cost_models.list_page(page)
    link_next(request, response, found)
    return [CostModelSummary.model_validate(row) for row in found.items]


@router.get("/{cost_model_id}", operation_id="get_cost_model", summary="Read a cost model")
def get(cost_model_id: str, context: Context, _: Reader) -> CostModelView:
    """A cost model with its document."""
    with context.database.read() as uow:
        return CostModelView.model_validate(uow.cost_models.get(cost_model_id))


@router.post(
    "/{cost_model_id}:predict",
    operation_id="predict_with_cost_model",
    summary="Predict an engine's latency and throughput",
)
async def predict(
    cost_model_id: str, body: PredictRequest, context: Context, _: Reader
) -> PredictionView:
    """Simulate settings under a workload with the model's step times, within 30 s.

    The engine's own scheduler runs in virtual time, three times: as predicted, and with steps
    slower and faster by what they may be off.
    """
    asked = cost_models.question_of(context.database, cost_model_id, body, context.settings)
    async with contextmanager_in_threadpool(asked) as question:
        found = await cost_models.predict(question, context.aside)
    return PredictionView.model_validate({**found, "cost_model_id": cost_model_id})


@router.get(
    "/{cost_model_id}/calibration",
    operation_id="get_calibration",
    summary="Read how right a cost model has been",
)
def calibration(cost_model_id: str, context: Context, _: Reader) -> CalibrationView:
    """Its error on steps it was not fitted on, and on live trials of jobs with it."""
    with context.database.read() as uow:
        return cost_models.calibration(uow, cost_model_id)


def _fingerprint(body: CostModelCreate) -> str:
    fingerprint = body.document.get("fingerprint")
    if not isinstance(fingerprint, str) or not 0 < len(fingerprint) <= MAX_FINGERPRINT:
        detail = f"a text of 1 to {MAX_FINGERPRINT} characters is required"
        raise ApiError(
            422,
            "invalid_request",
            "this is no step model",
            errors=[FieldError(pointer="/document/fingerprint", detail=detail)],
        )
    return fingerprint
