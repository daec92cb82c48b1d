"""Engines: registration, heartbeats, device leases."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from api.documents.inventory import check_plan, read_inventory
from api.documents.policy import check_model, envelope_in, settings_in
from api.schemas.serving import EngineRegister, EngineView, HeartbeatIn
from api.services import identity, policies
from api.services.audit import record
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings, num_devices
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
    had; if it refuses, its own is adopted. Whose a name is, :mod:`api.services.identity` tells.

    Raises:
        ApiError: 409, the name is that of a live engine.
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
    else:
        identity.require_name(row, credential, settings)
    issued = _issue(row, credential, is_kept=body.takes_credential)
    row.model_name, row.public_url, row.host = body.model_name, body.public_url, body.host
    row.model, row.envelope = body.model, asdict(envelope_in(body.envelope))
    row.capabilities, row.effective_policy = body.capabilities, in_force.to_json()
    row.inventory, row.last_heartbeat_at = body.inventory, utc_now()
    if is_new:
        uow.engines.add(row)
        policies.adopt(uow, row, in_force, caller, reason="registration")
    else:
        row.registered_at = utc_now()
        # A restarted process runs its command line's policy, whatever it ran before.
        row.applied_version = 0
    record(uow, caller, "engine.register", f"engines/{row.id}", reason=str(in_force.plan))
    _lease(uow, row, in_force.plan.world_size, body.devices, settings)
    return row, issued


def heartbeat(
    uow: UnitOfWork,
    engine_id: str,
    body: HeartbeatIn,
    settings: ServiceSettings,
    *,
    credential: str | None,
) -> EngineRow:
    """Keep one window of exact samples.

    Raises:
        ApiError: 403, not from the engine itself.
        PolicyError: a plan beyond the engine's inventory.
    """
    row = uow.engines.get(engine_id)
    identity.require_own(row, credential)
    in_force = settings_in(body.policy)
    inventory = policies.inventory_of(row)
    check_plan(in_force.plan, inventory, row.model, pointer="/policy/plan")
    row.effective_policy = in_force.to_json()
    uow.engines.add_heartbeat(
        engine_id,
        window_s=body.window_s,
        arrived=body.arrived,
        stats=body.stats,
        requests=[request.model_dump(mode="json") for request in body.requests],
        steps=[step.model_dump(mode="json") for step in body.steps],
    )
    _lease(uow, row, in_force.plan.world_size, body.devices, settings)
    return row


def deregister(uow: UnitOfWork, engine_id: str, *, credential: str | None, caller: Caller) -> None:
    """The engine ends: its devices are free again; its history stays.

    Raises:
        ApiError: 403, not from the engine itself.
    """
    row = uow.engines.get(engine_id)
    identity.require_own(row, credential)
    uow.devices.release(_holder(row))
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


def _holder(row: EngineRow) -> str:
    return f"engine:{row.id}"


def _lease(
    uow: UnitOfWork,
    row: EngineRow,
    world_size: int,
    devices: list[int] | None,
    settings: ServiceSettings,
) -> None:
    """Lease devices to an engine while its heartbeats come: named ones, else the first free ones.

    The engine serves already, so if some of its devices are taken, it gets what is left.
    """
    holder = _holder(row)
    until = utc_now() + timedelta(seconds=settings.lease_s)
    leases = uow.devices.list_leases(row.host)
    own = [lease for lease in leases if lease.holder == holder]
    if len(own) == (world_size if devices is None else min(world_size, len(devices))):
        for lease in own:
            lease.expires_at = until
        return
    uow.devices.release(holder)
    taken = {lease.device for lease in leases if lease.holder != holder}
    # Only this machine's number of devices is known; on others, devices are counted from 0.
    size = num_devices(settings) if row.host == settings.node else len(taken) + world_size
    wanted = devices if devices is not None else range(size)
    free = [device for device in wanted if device not in taken][:world_size]
    uow.devices.try_lease(host=row.host, devices=free, holder=holder, expires_at=until)
