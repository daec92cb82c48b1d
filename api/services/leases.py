"""Devices that serving engines hold, while their heartbeats come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from api.web.settings import ServiceSettings, num_devices
from engine.spec.plan import ParallelPlan
from store import UnitOfWork
from store.engines import Sender
from store.models import EngineRow
from store.models.base import utc_now

# A lease is renewed once this share of its time has passed, so that most heartbeats need not write.
RENEWED_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Need:
    """What an engine runs on: ``named`` devices, else any, as many as its plan has ranks."""

    engine: EngineRow | Sender
    num_ranks: int
    named: Sequence[int] | None

    @classmethod
    def of(
        cls, engine: EngineRow | Sender, plan: ParallelPlan, named: Sequence[int] | None
    ) -> Need:
        return cls(engine=engine, num_ranks=plan.world_size, named=named)

    @property
    def num_devices(self) -> int:
        return self.num_ranks if self.named is None else min(self.num_ranks, len(self.named))

    @property
    def holder(self) -> str:
        return holder_of(self.engine)


def holder_of(engine: EngineRow | Sender) -> str:
    """The engine as its leases name it."""
    return f"engine:{engine.id}"


def renew(uow: UnitOfWork, needs: Sequence[Need], settings: ServiceSettings) -> None:
    """Renew the leases of engines that hold what they need; lease to the others."""
    ends = uow.devices.list_ends([need.holder for need in needs])
    until = _until(settings)
    old = until - timedelta(seconds=RENEWED_SHARE * settings.lease_s)
    aged = [
        need.holder
        for need in needs
        if any(end is not None and end < old for end in ends[need.holder])
        and len(ends[need.holder]) == need.num_devices
    ]
    uow.devices.renew(aged, expires_at=until)
    for need in needs:
        if len(ends[need.holder]) != need.num_devices:
            lease(uow, need, settings)


def lease(uow: UnitOfWork, need: Need, settings: ServiceSettings) -> None:
    """Give an engine its devices: the named ones, else the first free ones.

    The engine serves already, so if some of its devices are taken, it gets what is left.
    """
    host = need.engine.host
    uow.devices.release(need.holder)
    taken = {it.device for it in uow.devices.list_leases(host)}
    # Only this machine's number of devices is known; on others, devices are counted from 0.
    size = num_devices(settings) if host == settings.node else len(taken) + need.num_ranks
    wanted = range(size) if need.named is None else need.named
    free = [device for device in wanted if device not in taken][: need.num_ranks]
    uow.devices.try_lease(host=host, devices=free, holder=need.holder, expires_at=_until(settings))


def _until(settings: ServiceSettings) -> datetime:
    return utc_now() + timedelta(seconds=settings.lease_s)
