"""An engine proves who it is

Engines that registered before have no credential, and need none until they register again.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in batch mode: see revision 0003.
    op.add_column("engines", sa.Column("credential_hash", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("engines", "credential_hash")
