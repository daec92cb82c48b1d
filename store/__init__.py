"""Tables, repositories and the unit of work."""

from __future__ import annotations

from store.errors import ConflictError, CursorError, NotFoundError, SchemaError, StoreError
from store.paging import Page, PageRequest
from store.session import Database, UnitOfWork

__all__ = [
    "ConflictError",
    "CursorError",
    "Database",
    "NotFoundError",
    "Page",
    "PageRequest",
    "SchemaError",
    "StoreError",
    "UnitOfWork",
]
