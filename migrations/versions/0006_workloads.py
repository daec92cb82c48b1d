"""Workloads: uploaded traces, and the jobs that name one

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workloads",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("form", sa.String(length=20), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("facts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workloads")),
    )
    op.create_table(
        "workload_parts",
        sa.Column("workload_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workload_id"],
            ["workloads.id"],
            name=op.f("fk_workload_parts_workload_id_workloads"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("workload_id", "number", name=op.f("pk_workload_parts")),
    )
    # In words of both databases: Alembic adds no foreign key to a table of SQLite, and in batch
    # mode what belongs to jobs would go with the old table (revision 0003).
    op.execute(
        "ALTER TABLE tuning_jobs ADD COLUMN workload_id VARCHAR(40) "
        "CONSTRAINT fk_tuning_jobs_workload_id_workloads REFERENCES workloads (id)"
    )
    op.create_index(op.f("ix_tuning_jobs_workload_id"), "tuning_jobs", ["workload_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_tuning_jobs_workload_id"), table_name="tuning_jobs")
    op.drop_column("tuning_jobs", "workload_id")
    op.drop_table("workload_parts")
    op.drop_table("workloads")
