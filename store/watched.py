"""Changes that others want to hear of at the commit, noted on the session that writes them."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy.orm import Session

NOTED = "gearshift_changes"


class Change(StrEnum):
    """What listeners of ``Database.on_commit`` may ask for."""

    AWAITED = "awaited"  # a policy version, or an event of a job or a rollout
    KEYS = "keys"  # a key was made, changed or revoked


def note(session: Session, change: Change) -> None:
    """Say that the session's transaction brings ``change``."""
    session.info.setdefault(NOTED, set()).add(change)


def noted(session: Session) -> frozenset[Change]:
    """What the session's transaction brings."""
    return frozenset(session.info.get(NOTED, ()))
