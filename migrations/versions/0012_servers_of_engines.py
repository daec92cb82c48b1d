"""Engines may be servers that are observed by their address

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    op.add_column("engines", sa.Column("system", sa.String(length=20), nullable=True))
    op.create_table(
        "engine_servers",
        sa.Column("engine_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.String(length=300), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("precision", sa.String(length=20), nullable=False),
        sa.Column("max_model_len", sa.Integer(), nullable=True),
        sa.Column("condition", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("page", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("restart", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["engine_id"],
            ["engines.id"],
            name=op.f("fk_engine_servers_engine_id_engines"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("engine_id", name=op.f("pk_engine_servers")),
    )


def downgrade() -> None:
    op.drop_table("engine_servers")
    op.drop_column("engines", "system")
