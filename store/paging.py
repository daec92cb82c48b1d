"""Keyset pages: stable under inserts, one index seek per page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from store.errors import CursorError

T = TypeVar("T")
Key = str | int


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """Up to ``limit`` rows after the row whose key is ``after`` (None: from the start)."""

    limit: int = 50
    after: Key | None = None


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Rows and the key to continue after; ``next_after`` is None on the last page."""

    items: Sequence[T]
    next_after: Key | None


def fetch_page(
    session: Session,
    query: sa.Select[T],
    key: InstrumentedAttribute[Any],
    page: PageRequest,
    *,
    newest_first: bool = True,
) -> Page[T]:
    """One page of ``query`` in the order of ``key``, a unique column of its entity.

    Raises:
        CursorError: ``page`` begins after a key of another kind.
    """
    if page.after is not None:
        kind = key.type.python_type
        if not isinstance(page.after, kind):
            raise CursorError(f"{page.after!r} is no {kind.__name__} of {key}; take it from a page")
        query = query.where(key < page.after if newest_first else key > page.after)
    ordered = query.order_by(key.desc() if newest_first else key.asc())
    rows = session.scalars(ordered.limit(page.limit + 1)).all()
    items = rows[: page.limit]
    has_more = len(rows) > page.limit
    return Page(items=items, next_after=getattr(items[-1], key.key) if has_more else None)
