"""Engines keep the capacity table in force, what the slow loop remembers, and their load by minute

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    for name in ("capacity_table", "capacity_memory"):
        op.add_column("engines", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "engine_loads",
        sa.Column("engine_id", sa.String(length=40), nullable=False),
        sa.Column("start_s", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seen_s", sa.Double(), nullable=False),
        sa.Column("requests", sa.Double(), nullable=False),
        sa.Column("input_tokens", sa.Double(), nullable=False),
        sa.Column("output_tokens", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["engine_id"],
            ["engines.id"],
            name=op.f("fk_engine_loads_engine_id_engines"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("engine_id", "start_s", name=op.f("pk_engine_loads")),
    )


def downgrade() -> None:
    op.drop_table("engine_loads")
    for name in ("capacity_memory", "capacity_table"):
        op.drop_column("engines", name)
