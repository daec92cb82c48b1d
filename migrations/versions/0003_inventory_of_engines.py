"""An engine's inventory: what its plans may use

Engines that registered before have none until they register again; of those, the number of ranks
that their capabilities name is what counts.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


# Not in batch mode: that makes the table anew, and on SQLite what belongs to engines would go
# with the old one.


def upgrade() -> None:
    op.add_column("engines", sa.Column("inventory", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("engines", "inventory")
