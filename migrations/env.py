"""Alembic's entry: runs revisions on the connection that ``migrations.runner`` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from store.models import Base
from store.models.base import UtcDateTime


def _render(kind: str, item: Any, _autogen: Any) -> str | Literal[False]:
    """Revisions name plain types, so that they never depend on today's code."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


# Batch mode: SQLite cannot alter a constraint in place.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
