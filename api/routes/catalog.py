"""``/v1/models``, ``/v1/hardware``, ``/v1/backends`` and ``/v1/links``: what a job may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query

from api.schemas.access import Scope
from api.schemas.base import answer
from api.schemas.examples import catalog as shown
from api.services.job_checks import require_all
from api.web.auth import Caller, require
from api.web.errors import ApiError
from tuner.described import catalog
from tuner.hardware import parse_hardware
from tuner.spec.errors import TunerError

router = APIRouter(prefix="/v1", tags=["catalog"])
Reader = Annotated[Caller, require(Scope.READ)]
Item = TypeVar("Item")


@router.get(
    "/models",
    operation_id="list_models",
    summary="List models known by name",
    responses=answer([shown.MODEL]),
)
def models(_: Reader) -> list[catalog.ListedModel]:
    """Models that a job on described hardware may name."""
    return _listed(catalog.catalog_models)


@router.get(
    "/hardware",
    operation_id="list_hardware",
    summary="List devices known by name",
    responses=answer([shown.HARDWARE]),
)
def hardware(_: Reader) -> list[catalog.ListedHardware]:
    """Devices to describe hardware with, as in 8xh200."""
    return _listed(catalog.catalog_hardware)


@router.get(
    "/backends",
    operation_id="list_backends",
    summary="List serving systems",
    responses=answer([shown.BACKEND]),
)
def backends(_: Reader) -> list[catalog.ListedBackend]:
    """Serving systems whose host times and defaults apply to described hardware."""
    return _listed(catalog.catalog_backends)


@router.get(
    "/backends/{backend}",
    operation_id="get_backend",
    summary="Show a serving system's settings",
    responses=answer(shown.BACKEND_SETTINGS),
)
def backend(
    backend: Annotated[str, Path(max_length=1000, description="As vllm, vllm@0.12")],
    _: Reader,
    hardware: Annotated[
        str | None, Query(max_length=200, description="Whose caps are shown, as 8xh200")
    ] = None,
) -> catalog.BackendSettings:
    """Every setting, its value and where that is from. A job names the same words."""
    if hardware is not None:
        require_all([("/query/hardware", lambda: parse_hardware(hardware))], "no such hardware")
    try:
        return catalog.backend_settings(backend, hardware)
    except TunerError as error:
        raise ApiError(404, "not_found", str(error)) from error


@router.get(
    "/links",
    operation_id="list_links",
    summary="List links between devices",
    responses=answer([shown.LINK]),
)
def links(_: Reader) -> list[catalog.ListedLink]:
    """Links between devices, as in 8xh200@pcie5."""
    return _listed(catalog.catalog_links)


def _listed(read: Callable[[], list[Item]]) -> list[Item]:
    """Whoever runs the service named the folder, not the caller."""
    try:
        return read()
    except TunerError as error:
        raise ApiError(500, "wrong_catalog", str(error)) from error
