"""Servers that are not ours: where they answer, and what was last seen of and done to them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, utc_now


class Sight(StrEnum):
    """Whether a server is seen, and why not. The set is closed."""

    NEW = "new"
    SEEN = "seen"
    RESTARTED = "restarted"
    RESTARTING = "restarting"
    NO_SERIES = "no_series"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    REDIRECTED = "redirected"
    REFUSED = "refused"
    FORBIDDEN_ADDRESS = "forbidden_address"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"


class ServerRow(Base):
    """The server behind an engine that is observed by its address.

    ``model`` and ``precision`` are what launch commands name, ``max_model_len`` the context to ask
    for. ``condition`` says whether it is seen (:class:`Sight`), ``page`` is what it
    counted at the last look, ``restart`` how the last restart ended and when another may begin.
    """

    __tablename__ = "engine_servers"

    engine_id: Mapped[str] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), primary_key=True
    )
    url: Mapped[str] = mapped_column(sa.String(300))
    model: Mapped[str] = mapped_column(sa.String(300))
    precision: Mapped[str] = mapped_column(sa.String(20))
    max_model_len: Mapped[int | None]
    condition: Mapped[Json]
    page: Mapped[Json | None]
    restart: Mapped[Json | None]
    observed_at: Mapped[datetime] = mapped_column(default=utc_now)
