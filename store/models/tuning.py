"""Tables of tuning: jobs, their events and trials, measurements, cost models, recommendations."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, JsonList, id_column, utc_now


class JobState(StrEnum):
    """Where a tuning job stands; the last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INFEASIBLE = "infeasible"

    @property
    def is_final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)


class TuningJob(Base):
    """One tuning job. ``spec`` is the tuner's TuningSpec as JSON; ``report`` its answer.

    ``retune_key`` has ENGINE/RECOMMENDATION where drift asked for it: there is one job of each.
    """

    __tablename__ = "tuning_jobs"

    id: Mapped[str] = id_column("job")
    state: Mapped[JobState] = mapped_column(
        sa.Enum(
            JobState,
            native_enum=False,
            create_constraint=True,
            name="state_known",
            length=16,
            values_callable=lambda kind: [member.value for member in kind],
        ),
        default=JobState.QUEUED,
        index=True,
    )
    reason: Mapped[str] = mapped_column(sa.Text, default="waiting for a worker")
    spec: Mapped[Json]
    report: Mapped[Json | None]
    num_trials: Mapped[int]
    last_event_seq: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[str] = mapped_column(sa.String(40))
    cost_model_id: Mapped[str | None] = mapped_column(sa.ForeignKey("cost_models.id"))
    workload_id: Mapped[str | None] = mapped_column(sa.ForeignKey("workloads.id"), index=True)
    retune_key: Mapped[str | None] = mapped_column(sa.String(90), index=True, unique=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEventRow(Base):
    """One line of a job's progress; ``seq`` counts from 1 without gaps inside a job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(
        sa.ForeignKey("tuning_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(sa.String(40))
    data: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Trial(Base):
    """One finished trial. ``record`` is the tuner's TrialRecord as JSON, its metrics apart."""

    __tablename__ = "trials"
    __table_args__ = (sa.UniqueConstraint("job_id", "number"),)

    id: Mapped[str] = id_column("trial")
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("tuning_jobs.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    record: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class MeasurementRow(Base):
    """Metrics with their fidelity and the metric definitions they follow.

    Belongs to a trial, or (``engine_id``) to a window of a live engine's traffic.
    """

    __tablename__ = "measurements"
    __table_args__ = (
        sa.CheckConstraint("(trial_id IS NULL) <> (engine_id IS NULL)", name="one_owner"),
    )

    id: Mapped[str] = id_column("meas")
    trial_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("trials.id", ondelete="CASCADE"), index=True
    )
    engine_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("engines.id", ondelete="CASCADE"), index=True
    )
    fidelity: Mapped[str] = mapped_column(sa.String(16))
    metrics: Mapped[Json]
    metric_ids: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class CostModel(Base):
    """A step model as JSON; ``fingerprint`` names the hardware it was fitted on."""

    __tablename__ = "cost_models"

    id: Mapped[str] = id_column("cm")
    fingerprint: Mapped[str] = mapped_column(sa.String(120), index=True)
    document: Mapped[Json]
    created_by: Mapped[str] = mapped_column(sa.String(40))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Groundwork(Base):
    """What the trials of an open job rest on, as JSON, with the key that identifies it."""

    __tablename__ = "groundworks"

    job_id: Mapped[str] = mapped_column(
        sa.ForeignKey("tuning_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    document: Mapped[Json]


class RecommendationRow(Base):
    """What a job recommends: settings, and the schedule of load bands."""

    __tablename__ = "recommendations"

    id: Mapped[str] = id_column("rec")
    job_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("tuning_jobs.id", ondelete="SET NULL"), unique=True
    )
    cost_model_id: Mapped[str | None] = mapped_column(sa.ForeignKey("cost_models.id"))
    sla: Mapped[str] = mapped_column(sa.Text)
    document: Mapped[Json]
    schedule: Mapped[Json | None]
    warnings: Mapped[JsonList] = mapped_column(default=list)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
