"""``POST /v1/capacity``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from api.schemas.access import Scope
from api.schemas.capacity import CapacityRequest, CapacityView
from api.services import capacity
from api.web.auth import Caller, require
from api.web.context import AppContext, get_context

router = APIRouter(prefix="/v1", tags=["capacity"])
Context = Annotated[AppContext, Depends(get_context)]
Reader = Annotated[Caller, require(Scope.READ)]


@router.post(
    "/capacity",
    operation_id="find_capacity",
    summary="Find the highest load within an SLA",
)
async def find(body: CapacityRequest, context: Context, _: Reader) -> CapacityView:
    """Find the highest rate, or number of clients, that settings carry on described hardware.

    Simulated within 60 s, at several rates and in several draws of the arrivals, which are thinned
    or repeated so that the burstiness is kept. Nothing is written.
    """
    found = await capacity.find_capacity(body, context.aside)
    return CapacityView.model_validate(found)
