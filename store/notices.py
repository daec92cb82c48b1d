"""What other processes commit, told by PostgreSQL (LISTEN and NOTIFY)."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.watched import Change, noted

CHANNEL = "gearshift_changes"
CONNECT_S = 5
# A connection that died silently is noticed after 25 s.
KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def tell(session: Session) -> None:
    """Let listeners hear of what the session's transaction brings, when it is committed."""
    for change in noted(session):
        session.execute(sa.select(sa.func.pg_notify(CHANNEL, change.value)))


async def listen(
    engine: sa.Engine, hears: Callable[[], None], heard: Callable[[Change], None]
) -> None:
    """Call ``hears`` once listening has begun, then ``heard`` for each commit, until cancelled.

    Raises:
        psycopg.OperationalError: the database cannot be reached, or is no longer.
    """
    import psycopg  # only where PostgreSQL is used

    _, found = engine.dialect.create_connect_args(engine.url)
    options = {**found, "connect_timeout": CONNECT_S, **KEEPALIVES}
    async with await psycopg.AsyncConnection.connect(**options, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        hears()
        async for notice in connection.notifies():
            heard(Change(notice.payload))
