"""What load settings carry: checked here, found in a process of its own."""

from __future__ import annotations

from api.aside.process import AsideError, AsideLimits
from api.schemas.base import Json
from api.schemas.capacity import CapacityRequest
from api.services.job_checks import Check, require_all
from api.web.aside import Aside
from api.web.errors import ApiError, FieldError
from engine.spec.settings import Settings
from policies.sla import Sla
from tuner.backends import load_backend
from tuner.hardware import parse_hardware
from tuner.search.spec import check_dtype
from tuner.spec.errors import TunerError
from tuner.work.models import find_model, load_model
from tuner.workload.parse import check_workload
from tuner.workload.spec import WorkloadSpec

LIMITS = AsideLimits(seconds=60.0, memory_mib=2048)


async def find_capacity(body: CapacityRequest, aside: Aside) -> Json:
    """The capacity document.

    Raises:
        ApiError: 422 naming each field that cannot be read, or that it cannot be found; 429, too
            many are looked for already.
    """
    _check(body)
    try:
        return await aside.run("capacity", body.model_dump(mode="json"), LIMITS)
    except AsideError as error:
        errors = [FieldError(pointer="", detail=str(error))]
        raise ApiError(422, "cannot_find_capacity", str(error), errors=errors) from error


def _check(body: CapacityRequest) -> None:
    checks: list[Check] = [
        ("/model", lambda: _check_model(body.model)),
        ("/hardware", lambda: parse_hardware(body.hardware)),
        ("/settings", lambda: Settings.from_json(body.settings)),
        ("/workload", lambda: _check_workload(body.workload)),
        ("/sla", lambda: Sla.parse(body.sla)),
    ]
    if (backend := body.backend) is not None:
        checks.append(("/backend", lambda: load_backend(backend)))
    if (dtype := body.dtype) is not None:
        checks.append(("/dtype", lambda: check_dtype(dtype)))
    require_all(checks, "no capacity can be found for this")


def _check_model(model: str) -> None:
    """Only names: a folder is none of the caller's business."""
    if find_model(model) is None:
        raise TunerError(f"model {model!r} is no known name; GET /v1/models lists them")
    load_model(model)


def _check_workload(text: str) -> None:
    if WorkloadSpec.parse(text).path is not None:
        raise TunerError("traces are not taken here: name a process, as in poisson:rate=4,...")
    check_workload(text)
