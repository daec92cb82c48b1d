"""Tables of rollouts: a candidate policy on its way, and what happened to it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, id_column, utc_now


class RolloutState(StrEnum):
    """Where a rollout stands; the last four are final."""

    REPLAYING = "replaying"
    CANARY = "canary"
    FULL = "full"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in UNDER_WAY


UNDER_WAY = (RolloutState.REPLAYING, RolloutState.CANARY, RolloutState.FULL)


class RolloutRow(Base):
    """One rollout on one engine.

    ``document`` and ``control`` are those of the candidate (as of a policy version);
    ``control_version`` is the version to go back to, ``written_version`` the last that the rollout
    wrote: while it is the engine's desired one, the engine is the rollout's. ``replay`` says how
    the replay is made (None: it is skipped), ``verdict`` what it said; ``canary`` is the progress.
    """

    __tablename__ = "rollouts"

    id: Mapped[str] = id_column("ro")
    engine_id: Mapped[str] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), index=True
    )
    state: Mapped[RolloutState] = mapped_column(
        sa.Enum(
            RolloutState,
            native_enum=False,
            create_constraint=True,
            name="state_known",
            length=16,
            values_callable=lambda kind: [member.value for member in kind],
        ),
        default=RolloutState.REPLAYING,
        index=True,
    )
    code: Mapped[str] = mapped_column(sa.String(40))
    reason: Mapped[str] = mapped_column(sa.Text)
    document: Mapped[Json]
    control: Mapped[Json | None]
    control_version: Mapped[int]
    written_version: Mapped[int]
    limits: Mapped[Json]
    replay: Mapped[Json | None]
    verdict: Mapped[Json | None]
    canary: Mapped[Json | None]
    last_event_seq: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[str] = mapped_column(sa.String(40))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]


class RolloutEventRow(Base):
    """One turn of a rollout; ``seq`` counts from 1 without gaps inside a rollout."""

    __tablename__ = "rollout_events"

    rollout_id: Mapped[str] = mapped_column(
        sa.ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(sa.String(40))
    data: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
