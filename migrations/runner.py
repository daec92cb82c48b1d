"""Run and check schema changes from anywhere: no alembic.ini, no working directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from store.errors import SchemaError
from store.models import Base

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class SchemaStatus:
    """Where a database's schema stands. ``current`` is None for an empty database."""

    current: str | None
    head: str
    differences: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        return self.current == self.head and not self.differences


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Bring the schema up to ``revision``, in one transaction.

    Raises:
        SchemaError: the database holds a revision this version of the code does not know.
    """
    _require_known_revision(engine)
    with engine.begin() as connection:
        command.upgrade(_config(connection), revision)


def downgrade(engine: sa.Engine, revision: str) -> None:
    """Take the schema down to ``revision`` (``base`` = nothing left), in one transaction."""
    with engine.begin() as connection:
        command.downgrade(_config(connection), revision)


def check(engine: sa.Engine) -> SchemaStatus:
    """Compare the database with the newest revision and with the models; changes nothing."""
    head = _newest()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        current = context.get_current_revision()
        found = compare_metadata(context, Base.metadata) if current == head else []
    return SchemaStatus(current=current, head=head, differences=tuple(str(d) for d in found))


def require_current(engine: sa.Engine) -> None:
    """Refuse a schema that is not the newest. Its tables are not looked at, which takes longer.

    Raises:
        SchemaError: with both revisions and the command that mends it.
    """
    head = _newest()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != head:
        raise SchemaError(
            f"the database schema is at {current or 'nothing'}, this version needs {head}; run "
            "'gearshift db upgrade' first"
        )


def _newest() -> str:
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None, "the package ships at least one revision"
    return head


def _require_known_revision(engine: sa.Engine) -> None:
    script = ScriptDirectory.from_config(_config(None))
    known = {revision.revision for revision in script.walk_revisions()}
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise SchemaError(
            f"the database schema is at {current}, which this version does not know; "
            "it was written by a newer gearshift"
        )


def _config(connection: sa.Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
