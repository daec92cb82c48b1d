"""The database's own guards of the audit trail."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session


def drop_guards(session: Session) -> None:
    """As somebody with the database's own rights could."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(sa.text("DROP TRIGGER audit_no_update"))
        session.execute(sa.text("DROP TRIGGER audit_no_delete"))
    else:
        session.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER ALL"))
