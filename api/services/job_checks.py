"""What would make a job fail at once, found while whoever asks still listens.

Nothing is built here, and no file is opened: those are read in a process of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from api.documents.places import Places, is_name
from api.documents.tuning_spec import tuning_spec
from api.documents.uploads import find_upload
from api.schemas.base import Json
from api.schemas.tuning import TuningJobCreate
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from api.web.settings import num_devices as inventory_size
from engine.spec.errors import EngineError
from engine.spec.inventory import LEAST_CPU_RANKS
from policies.errors import PolicyInputError
from policies.sla import Sla
from store import UnitOfWork
from store.models import WorkloadRow
from tuner.backends import load_backend
from tuner.described.parse import backend_of
from tuner.hardware import parse_hardware
from tuner.search.spec import LOCAL, check_dtype, check_quantization
from tuner.spec.errors import TunerError
from tuner.work.models import find_model, load_model
from tuner.workload.parse import check_workload as check_process
from tuner.workload.spec import WorkloadSpec

COULD_NOT_RUN = "the job could not run"
Check = tuple[str, Callable[[], object]]


def require_all(checks: Iterable[Check], summary: str) -> None:
    """Run checks of fields, each with its JSON pointer.

    Raises:
        ApiError: 422 naming every field at fault.
    """
    errors = [found for pointer, check in checks if (found := _find_error(pointer, check))]
    if errors:
        raise ApiError(422, "invalid_request", summary, errors=errors)


def job_spec(body: TuningJobCreate) -> Json:
    """The job as it is kept: a later default changes nothing for it."""
    hardware = _hardware(body)
    backend = body.backend if hardware == LOCAL else backend_of(body.backend)
    num_devices = _num_devices(body) or parse_hardware(hardware).count
    return {**body.model_dump(mode="json"), "backend": backend, "num_devices": num_devices}


def _hardware(body: TuningJobCreate) -> str:
    """What holds, as options come before the fields; of another type, they are refused later."""
    named = body.options.get("hardware")
    return named if isinstance(named, str) else body.hardware


def _num_devices(body: TuningJobCreate) -> int | None:
    named = body.options.get("num_devices")
    return named if isinstance(named, int) else body.num_devices


def check_job(body: TuningJobCreate, settings: ServiceSettings) -> None:
    """Find what would make the job fail at once.

    Raises:
        ApiError: 422 naming each field.
    """
    hardware, num_devices = _hardware(body), _num_devices(body)
    checks: list[Check] = [
        ("/sla", lambda: Sla.parse(body.sla)),
        (
            body.pointer("model_dir"),
            lambda: check_model(body.model_dir, hardware, settings.places),
        ),
        (body.pointer("workload"), lambda: check_workload(body.workload, settings.places)),
        ("/hardware", lambda: _check_hardware(hardware, num_devices)),
        ("/num_devices", lambda: _check_here(hardware, num_devices, settings)),
        ("/backend", lambda: _check_backend(body.backend, hardware)),
        ("/dtype", lambda: check_dtype(body.dtype)),
        ("/quantization", lambda: check_quantization(body.quantization, hardware)),
    ]
    told = {f"/{name}" for name in body.options}  # those come first, and are checked next
    require_all([check for check in checks if check[0] not in told], COULD_NOT_RUN)
    require_all([("/options", lambda: _check_options(body, settings))], COULD_NOT_RUN)


def _check_options(body: TuningJobCreate, settings: ServiceSettings) -> None:
    """The whole specification: options may name fields that stand beside them, too."""
    spec = tuning_spec(job_spec(body))
    settings.places.check_engine(spec)
    check_workload(spec.workload, settings.places)
    _check_hardware(spec.hardware, spec.num_devices)
    _check_here(spec.hardware, spec.num_devices, settings)
    check_model(spec.model_dir, spec.hardware, settings.places)
    if not spec.is_local and is_name(spec.model_dir):
        spec.node()


def check_model(model: str, hardware: str, places: Places) -> None:
    """The path of a folder that is there; on described hardware also a name."""
    if hardware != LOCAL and is_name(model):
        load_model(model)
    elif is_name(model) and find_model(model) is not None:
        raise TunerError(
            f"model {model!r} is a name for described hardware, as in 8xh200; here an engine "
            f"starts from a folder (./{model} if it is one)"
        )
    else:
        places.check_model(model)


def check_workload(text: str, places: Places) -> None:
    """A SPEC; of a trace a path that is there; an uploaded one is looked up later."""
    if find_upload(text) is not None:
        return
    places.check_workload(text)
    if WorkloadSpec.parse(text).path is None:
        check_process(text)


def use_upload(uow: UnitOfWork, workload: str, pointer: str) -> WorkloadRow | None:
    """The uploaded workload that a text names, kept from being removed meanwhile; None: a SPEC.

    Raises:
        ApiError: 422, there is none, or it does not take the options after its id.
    """
    named = find_upload(workload)
    if named is None:
        return None
    row = uow.workloads.find(named.workload_id, for_use=True)

    def check() -> None:
        if row is None:
            raise TunerError(f"workload {named.workload_id} does not exist")
        named.at(row.form, Path(row.id))

    require_all([(pointer, check)], COULD_NOT_RUN)
    return row


def _check_hardware(hardware: str, num_devices: int | None) -> None:
    if hardware == LOCAL:
        return
    described = parse_hardware(hardware)
    if num_devices is not None and num_devices > described.count:
        raise TunerError(f"{num_devices} devices asked for, {described} has {described.count}")


def _check_here(hardware: str, num_devices: int | None, settings: ServiceSettings) -> None:
    """On this machine, a plan may use its devices; ranks of a CPU may be a few more than cores."""
    most = max(inventory_size(settings), LEAST_CPU_RANKS)
    if hardware != LOCAL:
        return
    if num_devices is None:
        raise TunerError(f"needed: how many devices of this machine a plan may use, up to {most}")
    if num_devices > most:
        raise TunerError(
            f"{num_devices} devices asked for, plans on this machine may use {most}; describe "
            "other hardware, as in 8xh200"
        )


def _check_backend(backend: str | None, hardware: str) -> None:
    if backend is None:
        return
    load_backend(backend)
    if hardware == LOCAL:
        raise TunerError(
            f"backend {backend!r} is for described hardware: add hardware, as in 8xh200"
        )


def _find_error(pointer: str, check: Callable[[], object]) -> FieldError | None:
    try:
        check()
    except (EngineError, PolicyInputError, TunerError) as error:
        return FieldError(pointer=pointer, detail=str(error))
    return None
