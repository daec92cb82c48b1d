"""Heartbeats are numbered by eight bytes

Each engine sends one a second. On PostgreSQL a thousand engines used up the numbers of four bytes
in 25 days, and no heartbeat was taken after that; SQLite's were of eight bytes already.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

POSTGRESQL = "postgresql"


def upgrade() -> None:
    if op.get_bind().dialect.name == POSTGRESQL:
        op.execute("ALTER TABLE engine_heartbeats ALTER COLUMN id TYPE BIGINT")
        op.execute("ALTER SEQUENCE engine_heartbeats_id_seq AS BIGINT")


def downgrade() -> None:
    if op.get_bind().dialect.name != POSTGRESQL:
        return
    # They are dropped after an hour anyway; a window that is not there is missing data.
    op.execute("DELETE FROM engine_heartbeats WHERE id > 2147483647")
    op.execute(
        "SELECT setval('engine_heartbeats_id_seq', "
        "(SELECT COALESCE(MAX(id), 1) FROM engine_heartbeats))"
    )
    op.execute("ALTER SEQUENCE engine_heartbeats_id_seq AS INTEGER")
    op.execute("ALTER TABLE engine_heartbeats ALTER COLUMN id TYPE INTEGER")
