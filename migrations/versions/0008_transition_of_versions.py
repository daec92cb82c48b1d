"""How an engine went from plan to plan is kept with the version that asked for it

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    column = sa.Column("ack_transition", sa.JSON(none_as_null=True), nullable=True)
    op.add_column("policy_versions", column)


def downgrade() -> None:
    op.drop_column("policy_versions", "ack_transition")
