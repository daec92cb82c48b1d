"""Tables of serving: engines, their heartbeats and policies, decisions, device leases."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, JsonList, id_column, utc_now


class AckState(StrEnum):
    """What an engine said about a policy version."""

    PENDING = "pending"
    APPLIED = "applied"
    REFUSED = "refused"


class EngineRow(Base):
    """A registered engine. It keeps its identity by ``name`` over restarts of either side.

    ``recommendation_id``, ``schedule`` and ``sla`` are those of the version in force: they change
    when the engine says that it applied a version. The controller works on engines that have
    them; it keeps its memory between decisions in ``control_memory``, and what it saw last in
    ``live_window``. ``capacity_table`` is what its slow loop chooses from, which remembers by
    ``capacity_memory``; ``drift_memory`` is of how far steps are from what the recommendation
    foresees. ``credential_hash`` is the SHA-256 of what the engine proves its identity
    with; None: an engine of an earlier version. ``system`` is the serving system of an engine that
    is observed by its address (:class:`store.models.servers.ServerRow`); None: it reports itself.
    """

    __tablename__ = "engines"

    id: Mapped[str] = id_column("eng")
    name: Mapped[str] = mapped_column(sa.String(120), unique=True)
    system: Mapped[str | None] = mapped_column(sa.String(20))
    model_name: Mapped[str] = mapped_column(sa.String(200))
    public_url: Mapped[str | None] = mapped_column(sa.String(300))
    host: Mapped[str] = mapped_column(sa.String(200))
    credential_hash: Mapped[str | None] = mapped_column(sa.String(64))
    model: Mapped[Json]
    envelope: Mapped[Json]
    capabilities: Mapped[JsonList]
    effective_policy: Mapped[Json]
    inventory: Mapped[Json | None]
    desired_version: Mapped[int] = mapped_column(default=0)
    applied_version: Mapped[int] = mapped_column(default=0)
    last_version: Mapped[int] = mapped_column(default=0)
    recommendation_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("recommendations.id", ondelete="SET NULL")
    )
    schedule: Mapped[Json | None]
    sla: Mapped[str | None] = mapped_column(sa.Text)
    control_memory: Mapped[Json | None]
    live_window: Mapped[Json | None]
    capacity_table: Mapped[Json | None]
    capacity_memory: Mapped[Json | None]
    drift_memory: Mapped[Json | None]
    registered_at: Mapped[datetime] = mapped_column(default=utc_now)
    last_heartbeat_at: Mapped[datetime | None]


class Heartbeat(Base):
    """What an engine saw in one window: exact request timings and step aggregates.

    A window that is not here is missing data, never zero load.
    """

    __tablename__ = "engine_heartbeats"
    __table_args__ = (sa.Index("ix_engine_heartbeats_engine_id_id", "engine_id", "id"),)

    # SQLite numbers rows by itself in a column of this one type, of eight bytes as well.
    id: Mapped[int] = mapped_column(
        sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
    )
    engine_id: Mapped[str] = mapped_column(sa.ForeignKey("engines.id", ondelete="CASCADE"))
    window_s: Mapped[float]
    arrived: Mapped[int]
    stats: Mapped[Json]
    requests: Mapped[JsonList]
    steps: Mapped[JsonList]
    received_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class EngineLoad(Base):
    """What arrived at an engine in one minute: the history that forecasts are made from.

    ``start_s`` is Unix time, a multiple of 60; ``seen_s`` of the minute are known.
    """

    __tablename__ = "engine_loads"

    engine_id: Mapped[str] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), primary_key=True
    )
    start_s: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    seen_s: Mapped[float]
    requests: Mapped[float]
    input_tokens: Mapped[float]
    output_tokens: Mapped[float]


class PolicyVersion(Base):
    """One version of an engine's policy document, and what the engine said about it.

    ``control`` is what goes in force with it at the service: ``recommendation_id``, ``schedule``
    and ``capacity_table``; None where none was ever given.
    """

    __tablename__ = "policy_versions"

    engine_id: Mapped[str] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    document: Mapped[Json]
    control: Mapped[Json | None]
    origin: Mapped[str] = mapped_column(sa.String(20))
    reason: Mapped[str] = mapped_column(sa.Text)
    created_by: Mapped[str] = mapped_column(sa.String(40))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    ack_state: Mapped[AckState] = mapped_column(
        sa.Enum(
            AckState,
            native_enum=False,
            create_constraint=True,
            name="ack_known",
            length=16,
            values_callable=lambda kind: [member.value for member in kind],
        ),
        default=AckState.PENDING,
    )
    ack_message: Mapped[str | None] = mapped_column(sa.Text)
    ack_changes: Mapped[Json | None]
    ack_seconds: Mapped[float | None]
    ack_transition: Mapped[Json | None]
    acknowledged_at: Mapped[datetime | None]


class DecisionRow(Base):
    """One decision of the controller, taken or not, with what it saw and what it rejected."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    engine_id: Mapped[str] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), index=True
    )
    action: Mapped[str] = mapped_column(sa.String(40))
    reason: Mapped[str] = mapped_column(sa.String(60))
    band_index: Mapped[int | None]
    settings: Mapped[Json | None]
    rejected: Mapped[JsonList]
    observed: Mapped[Json]
    policy_version: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DeviceLease(Base):
    """One device of one host in use: by a serving engine (no expiry) or by a trial."""

    __tablename__ = "device_leases"

    host: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    device: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str] = mapped_column(sa.String(60), index=True)
    leased_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
