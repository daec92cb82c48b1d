"""Engines keep how far their steps have drifted; there is one job of each re-tune that it asks for

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    op.add_column("engines", sa.Column("drift_memory", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("tuning_jobs", sa.Column("retune_key", sa.String(length=90), nullable=True))
    op.create_index(op.f("ix_tuning_jobs_retune_key"), "tuning_jobs", ["retune_key"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_tuning_jobs_retune_key"), table_name="tuning_jobs")
    op.drop_column("tuning_jobs", "retune_key")
    op.drop_column("engines", "drift_memory")
