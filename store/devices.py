"""Leases on devices, so that trials and serving engines never share one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import DeviceLease
from store.models.base import utc_now

LEASES = cast("sa.Table", DeviceLease.__table__)
# These statements are built once and make no ORM objects, because every heartbeat runs them.
IS_HELD = LEASES.c.holder.in_(sa.bindparam("holders", expanding=True))
IN_FORCE = LEASES.c.expires_at.is_(None) | (LEASES.c.expires_at > sa.bindparam("now"))
ENDS = sa.select(LEASES.c.holder, LEASES.c.expires_at).where(IS_HELD, IN_FORCE)
RENEW = sa.update(LEASES).where(IS_HELD).values(expires_at=sa.bindparam("until"))


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

    def list_ends(self, holders: Collection[str]) -> dict[str, list[datetime | None]]:
        """When each lease in force of these holders ends, if ever."""
        found: dict[str, list[datetime | None]] = {holder: [] for holder in holders}
        given = {"holders": list(found), "now": utc_now()}
        for holder, end in self._session.connection().execute(ENDS, given):
            found[holder].append(end)
        return found

    def renew(self, holders: Collection[str], *, expires_at: datetime) -> None:
        """Let everything that these holders have last until then."""
        if holders:
            given = {"holders": list(holders), "until": expires_at}
            self._session.connection().execute(RENEW, given)

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
