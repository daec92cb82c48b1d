"""Databases that earlier versions kept, with all their rows."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

DATABASES = Path(__file__).parent / "databases"


def load_dump(connection: sa.Connection, path: Path) -> None:
    """Copy the rows of a dump, parents before children, whatever database they go to."""
    source = sa.create_engine("sqlite://")
    metadata = sa.MetaData()
    metadata.reflect(connection)
    with source.connect() as old:
        raw = old.connection.dbapi_connection
        assert raw is not None, "the connection is open"
        raw.executescript(path.read_text())
        for table in metadata.sorted_tables:
            if table.name == "alembic_version":
                continue
            columns = [sa.column(c.name, c.type) for c in table.columns]
            rows = old.execute(sa.select(*columns).select_from(sa.table(table.name))).mappings()
            if values := [dict(row) for row in rows]:
                connection.execute(table.insert(), values)
                _count_on(connection, table)
    source.dispose()


def _count_on(connection: sa.Connection, table: sa.Table) -> None:
    """PostgreSQL numbers rows by a sequence, which rows with numbers of their own leave behind."""
    column = table.autoincrement_column
    if column is not None and connection.dialect.name == "postgresql":
        newest = sa.select(sa.func.max(column)).scalar_subquery()
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, newest)))
