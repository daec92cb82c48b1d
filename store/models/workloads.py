"""Tables of workloads: traces that were uploaded, with what is known of them."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, id_column, utc_now

# Letters; SQLite would keep more, PostgreSQL refuses them.
MOST_NAME = 120


class WorkloadRow(Base):
    """A trace as it was uploaded: its format, and ``facts`` (``Workload.describe``)."""

    __tablename__ = "workloads"

    id: Mapped[str] = id_column("wl")
    name: Mapped[str] = mapped_column(sa.String(MOST_NAME))
    form: Mapped[str] = mapped_column(sa.String(20))
    num_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    facts: Mapped[Json]
    created_by: Mapped[str] = mapped_column(sa.String(40))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class WorkloadPart(Base):
    """A piece of a trace's bytes, compressed by zlib; pieces follow each other by ``number``."""

    __tablename__ = "workload_parts"

    workload_id: Mapped[str] = mapped_column(
        sa.ForeignKey("workloads.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(sa.LargeBinary)
