"""What the controller saw last is kept with the engine

Every control plane shows it then, not only the one that controls.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    op.add_column("engines", sa.Column("live_window", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("engines", "live_window")
