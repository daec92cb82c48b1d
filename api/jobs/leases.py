"""Devices for live trials: leased by the job, never those of a serving engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

from api.jobs.backend import JobInputError, JobStoppedError
from api.web.settings import ServiceSettings, num_devices
from store import Database
from store.models.base import utc_now

LOOK_EVERY_S = 0.5
# Renewed before each trial, and during long ones. A worker that dies leaves its lease behind; its
# job takes it back when it resumes.
TRIAL_LEASE = timedelta(hours=1)
RENEWED_SHARE = 0.1


class DeviceLeases:
    """Leases devices of this machine to jobs, from the job's first live step to its end."""

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self._database = database
        self._settings = settings
        # Looked up once: while a job runs, this process sees no devices but that job's.
        self._num_devices = num_devices(settings)
        self._held: dict[str, tuple[int, ...]] = {}
        self._leased_s: dict[str, float] = {}

    def find(
        self,
        job_id: str,
        needed: int,
        *,
        first: int = 0,
        is_cancelled: Callable[[], bool],
        may_give_up: bool,
    ) -> tuple[int, ...] | None:
        """The devices the job holds; leases them if need be, at most all of the machine's from
        device ``first`` on.

        If too few are free, it waits for them; with ``may_give_up`` it returns None at once.

        Raises:
            JobStoppedError: the job was cancelled meanwhile.
            JobInputError: too few were free within the waiting time, or there is no such device.
        """
        size = self._num_devices
        if not size:
            raise JobInputError("this machine has no devices (GEARSHIFT_DEVICES=0)")
        if first >= size:
            raise JobInputError(f"there is no device {first}: this machine has {size}, from 0 on")
        wanted = min(needed, size - first)
        until_s = time.monotonic() + self._settings.device_wait_s
        while (devices := self._try(job_id, wanted, range(first, size))) is None:
            if may_give_up:
                return None
            if is_cancelled():
                raise JobStoppedError
            if time.monotonic() >= until_s:
                raise JobInputError(
                    f"{wanted} of {size - first} devices were not free within "
                    f"{self._settings.device_wait_s:g} s; serving engines keep theirs"
                )
            time.sleep(LOOK_EVERY_S)
        self._held[job_id] = devices
        self._leased_s[job_id] = time.monotonic()
        return devices

    def keep(self, job_id: str) -> None:
        """Renew what the job holds, once a part of its time is over; to be called on the way."""
        age_s = time.monotonic() - self._leased_s.get(job_id, math.inf)
        if age_s < RENEWED_SHARE * TRIAL_LEASE.total_seconds():
            return
        with self._database.begin() as uow:
            uow.devices.renew([_holder(job_id)], expires_at=utc_now() + TRIAL_LEASE)
        self._leased_s[job_id] = time.monotonic()

    def release(self, job_id: str) -> None:
        """Give back what the job holds."""
        self._held.pop(job_id, None)
        self._leased_s.pop(job_id, None)
        with self._database.begin() as uow:
            uow.devices.release(_holder(job_id))

    def _try(self, job_id: str, wanted: int, among: range) -> tuple[int, ...] | None:
        """Take the first free devices; a job that is prepared runs on its own ones and no others,
        which somebody else may have if its lease ended (as when a clock jumped)."""
        node, holder = self._settings.node, _holder(job_id)
        with self._database.begin() as uow:
            uow.devices.release(holder)
            taken = {lease.device for lease in uow.devices.list_leases(node)}
            own = self._held.get(job_id, among)
            devices = tuple(device for device in own if device not in taken)[:wanted]
            is_leased = len(devices) == wanted and uow.devices.try_lease(
                host=node, devices=devices, holder=holder, expires_at=utc_now() + TRIAL_LEASE
            )
        return devices if is_leased else None


def _holder(job_id: str) -> str:
    return f"job:{job_id}"
