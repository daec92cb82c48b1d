"""Leases on devices, so that trials and serving engines never share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import DeviceLease
from store.models.base import utc_now


class DeviceRepository:
    """Grants leases; the primary key (host, device) keeps two holders apart."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list_leases(self, host: str) -> Sequence[DeviceLease]:
        """Leases in force on a host, by device."""
        query = sa.select(DeviceLease).where(DeviceLease.host == host).order_by(DeviceLease.device)
        now = utc_now()
        return [
            lease
            for lease in self._session.scalars(query)
            if lease.expires_at is None or lease.expires_at > now
        ]

    def count_held(self, holders: Collection[str]) -> Counter[str]:
        """How many leases in force each of these holders has."""
        is_in_force = DeviceLease.expires_at.is_(None) | (DeviceLease.expires_at > utc_now())
        query = sa.select(DeviceLease.holder).where(DeviceLease.holder.in_(holders), is_in_force)
        return Counter(self._session.scalars(query))

    def renew(self, holders: Collection[str], *, expires_at: datetime) -> None:
        """Let everything that these holders have last until then."""
        self._session.execute(
            sa.update(DeviceLease)
            .where(DeviceLease.holder.in_(holders))
            .values(expires_at=expires_at),
            execution_options={"synchronize_session": False},
        )

    def try_lease(
        self, *, host: str, devices: Sequence[int], holder: str, expires_at: datetime | None
    ) -> bool:
        """Lease all of ``devices`` to ``holder`` or none; False when one is taken."""
        self._drop_expired(host)
        rows = [
            DeviceLease(host=host, device=device, holder=holder, expires_at=expires_at)
            for device in devices
        ]
        try:
            with self._session.begin_nested():
                self._session.add_all(rows)
        except sa.exc.IntegrityError:
            return False
        return True

    def release(self, holder: str) -> None:
        """Give back everything ``holder`` has."""
        self._session.execute(sa.delete(DeviceLease).where(DeviceLease.holder == holder))

    def _drop_expired(self, host: str) -> None:
        self._session.execute(
            sa.delete(DeviceLease).where(
                DeviceLease.host == host,
                DeviceLease.expires_at.is_not(None),
                DeviceLease.expires_at <= utc_now(),
            )
        )
