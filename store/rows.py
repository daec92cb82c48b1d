"""One row by its key, as it is now where it is to be changed."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy.orm import Session

from store.models import Base

Row = TypeVar("Row", bound=Base)


def find_row(session: Session, kind: type[Row], key: Any, *, for_update: bool) -> Row | None:
    """The row; ``for_update`` holds it until the unit of work ends.

    A held row is read anew even if the unit of work has seen it: another may have changed it while
    this one waited, and writing the old values back would undo that.
    """
    if not for_update:
        return session.get(kind, key)
    return session.get(kind, key, with_for_update=True, populate_existing=True)
