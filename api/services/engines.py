"""Engines: registration, and their end."""

from __future__ import annotations

from dataclasses import asdict

from api.documents.inventory import check_plan, read_inventory
from api.documents.policy import check_model, envelope_in, other_shape
from api.schemas.serving import EngineRegister, EngineView
from api.services import identity, leases
from api.services.audit import record
from api.services.in_force import adopt
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from engine.spec.errors import EngineError
from engine.spec.settings import Settings
from store import UnitOfWork
from store.models import EngineRow
from store.models.base import utc_now


def view(row: EngineRow, settings: ServiceSettings) -> EngineView:
    """An engine; alive while its heartbeats are younger than a control window."""
    fields = {name: getattr(row, name) for name in EngineView.model_fields if name != "is_alive"}
    return EngineView(**fields, is_alive=identity.is_alive(row, settings))


def register(
    uow: UnitOfWork,
    body: EngineRegister,
    settings: ServiceSettings,
    *,
    credential: str | None,
    caller: Caller,
) -> tuple[EngineRow, str | None]:
    """Make the engine known, or known again under its name; a fresh credential if it gets one.

    A new engine's policy is adopted as version 1. One that comes back is asked to run the policy it
    had; if it refuses, or serves another model now, its own is adopted. Whose a name is,
    :mod:`api.services.identity` tells.

    Raises:
        ApiError: 409, the name is that of a live engine, or of an observed one.
        ApiError: 422, a model, envelope, inventory or policy that cannot be read.
        PolicyError: a plan beyond the inventory it sends.
    """
    in_force = Settings.from_json(body.policy)
    _check_readable(body)
    inventory = read_inventory(body.inventory, body.capabilities)
    check_plan(in_force.plan, inventory, body.model, pointer="/policy/plan")
    row = uow.engines.find_by_name(body.name)
    is_new = row is None
    if row is None:
        row = EngineRow(name=body.name)
    elif row.system is not None:
        raise ApiError(
            409,
            "name_in_use",
            f"name {body.name!r} is that of engine {row.id}, which is observed by its address; "
            "choose another name (--name)",
        )
    else:
        identity.require_name(row, credential, settings)
    issued = _issue(row, credential, is_kept=body.takes_credential)
    differing = other_shape(body.model, row.model or {})
    row.model_name, row.public_url, row.host = body.model_name, body.public_url, body.host
    row.model, row.envelope = body.model, asdict(envelope_in(body.envelope))
    row.capabilities, row.effective_policy = body.capabilities, in_force.to_json()
    row.inventory, row.last_heartbeat_at = body.inventory, utc_now()
    if is_new:
        uow.engines.add(row)
        adopt(uow, row, in_force, caller, reason="registration")
    else:
        row.registered_at = utc_now()
        # A restarted process runs its command line's policy, whatever it ran before.
        row.applied_version = 0
        if differing is not None:
            why = f"it serves another model now: {differing}"
            adopt(uow, row, in_force, caller, reason=why, other_model=differing)
    record(uow, caller, "engine.register", f"engines/{row.id}", reason=str(in_force.plan))
    leases.renew(uow, [leases.Need.of(row, in_force.plan, body.devices)], settings)
    return row, issued


def deregister(
    uow: UnitOfWork,
    engine_id: str,
    settings: ServiceSettings,
    *,
    credential: str | None,
    caller: Caller,
) -> None:
    """The engine ends: its devices are free again; its history stays. An observed one is looked at
    no more, and one that was killed stands as silent no more, whoever says so.

    Raises:
        ApiError: 403, it lives, and this is not from itself.
    """
    # Held, so that who has the name by now is looked at: another may just have registered under it.
    row = uow.engines.get(engine_id, for_update=True)
    if row.system is None and identity.is_alive(row, settings):
        identity.require_own(row, credential)
    uow.servers.remove(engine_id)
    uow.devices.release(leases.holder_of(row))
    row.last_heartbeat_at = None
    record(uow, caller, "engine.deregister", f"engines/{row.id}", reason="the engine ended")


def _issue(row: EngineRow, credential: str | None, *, is_kept: bool) -> str | None:
    """A fresh credential, unless the engine has shown its own or does not keep one."""
    if not is_kept:
        row.credential_hash = None
        return None
    return None if identity.proves(row, credential) else identity.issue(row)


def _check_readable(body: EngineRegister) -> None:
    for pointer, read in (
        ("/envelope", lambda: Settings.from_json({"caps": body.envelope})),
        ("/inventory", lambda: read_inventory(body.inventory, body.capabilities)),
        ("/model", lambda: check_model(body.model) if body.model else None),
    ):
        try:
            read()
        except (EngineError, TypeError, ValueError) as error:
            raise ApiError(
                422,
                "invalid_request",
                f"{pointer} cannot be read",
                errors=[FieldError(pointer=pointer, detail=str(error))],
            ) from error
