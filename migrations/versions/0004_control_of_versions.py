"""What goes in force with a policy version stands beside it until the engine has applied it

Before, an engine's recommendation, schedule and SLA changed when a version was written, and stayed
when the engine refused it. Versions that are asked for or in force get what their engine has now.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ENGINES = sa.table(
    "engines",
    sa.column("id", sa.String),
    sa.column("desired_version", sa.Integer),
    sa.column("applied_version", sa.Integer),
    sa.column("recommendation_id", sa.String),
    sa.column("schedule", sa.JSON()),
)
VERSIONS = sa.table(
    "policy_versions",
    sa.column("engine_id", sa.String),
    sa.column("version", sa.Integer),
    sa.column("control", sa.JSON(none_as_null=True)),
)


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    op.add_column("policy_versions", sa.Column("control", sa.JSON(), nullable=True))
    connection = op.get_bind()
    for engine in connection.execute(sa.select(ENGINES)).mappings().all():
        if engine["recommendation_id"] is None and not engine["schedule"]:
            continue
        control = {
            "recommendation_id": engine["recommendation_id"],
            "schedule": engine["schedule"],
        }
        asked_or_applied = (engine["desired_version"], engine["applied_version"])
        connection.execute(
            sa.update(VERSIONS)
            .where(VERSIONS.c.engine_id == engine["id"], VERSIONS.c.version.in_(asked_or_applied))
            .values(control=control)
        )


def downgrade() -> None:
    op.drop_column("policy_versions", "control")
