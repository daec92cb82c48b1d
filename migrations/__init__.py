"""Schema changes, one Alembic file each."""
