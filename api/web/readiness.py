"""Whether the service could keep what it is told."""

from __future__ import annotations

import shutil
from pathlib import Path

from api.web.context import AppContext
from store import StoreError

MIB = 2**20


def require_writable(context: AppContext) -> None:
    """Look for room on the disk of the data, and take the database's write lock once.

    Room is asked for beside the writing: SQLite's log is made larger in steps, so a small write may
    still succeed on a disk that is full.

    Raises:
        StoreError: too little room is left.
        sqlalchemy.exc.DBAPIError: the database cannot be written.
    """
    settings = context.settings
    file = context.database.engine.url.database if settings.is_sqlite else None
    folder = settings.data_dir if file is None else Path(file).resolve().parent
    if folder.is_dir():  # with PostgreSQL there may be none
        free_mib = shutil.disk_usage(folder).free // MIB
        if free_mib < settings.disk_reserve_mib:
            raise StoreError(
                f"{folder} has {free_mib} MiB free, less than GEARSHIFT_DISK_RESERVE_MIB="
                f"{settings.disk_reserve_mib}: make room"
            )
    context.database.require_writable()
