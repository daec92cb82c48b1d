"""The store's error tree: missing rows, forbidden changes, schemas that differ."""

from __future__ import annotations


class StoreError(Exception):
    """Root of the tree; catch it at a boundary and convert once."""


class NotFoundError(StoreError):
    """No row with this identity."""

    def __init__(self, noun: str, identity: object, *, hint: str = "") -> None:
        super().__init__(f"{noun} {identity} does not exist{hint}")
        self.noun = noun


class ConflictError(StoreError):
    """The row exists but its state forbids the change, with the state in the message."""


class CursorError(StoreError):
    """A page is asked for after a key that is not of the list's kind."""


class SchemaError(StoreError):
    """The database's schema is not the one this version of the code needs."""
