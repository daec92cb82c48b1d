"""Policy versions of engines."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from store.errors import NotFoundError
from store.models import AckState, EngineRow, PolicyVersion
from store.models.base import Json
from store.paging import Page, PageRequest, fetch_page
from store.watched import Change, note


class PolicyRepository:
    """Reads and writes policy versions; documents never change, acknowledgements fill in."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        engine: EngineRow,
        *,
        document: Json,
        control: Json | None,
        origin: str,
        reason: str,
        created_by: str,
    ) -> PolicyVersion:
        """Append the engine's next version and make it the desired one.

        The caller holds the engine's row (``get(for_update=True)``), so numbers have no gaps.
        """
        engine.last_version += 1
        engine.desired_version = engine.last_version
        row = PolicyVersion(
            engine_id=engine.id,
            version=engine.last_version,
            document=document,
            control=control,
            origin=origin,
            reason=reason,
            created_by=created_by,
        )
        self._session.add(row)
        self._session.flush()
        note(self._session, Change.AWAITED)
        return row

    def get(self, engine_id: str, version: int) -> PolicyVersion:
        """Raises NotFoundError when the engine has no such version."""
        row = self._session.get(PolicyVersion, (engine_id, version))
        if row is None:
            raise NotFoundError(f"engine {engine_id} policy version", version)
        return row

    def find_applied(self, engine_id: str, *, before: int) -> PolicyVersion | None:
        """The newest version below ``before`` that the engine applied for more than a slice: nobody
        means by "the one before" a version that only took its turn in a rollout.
        """
        part = PolicyVersion.document[("provenance", "slice")].as_string()
        is_slice = sa.and_(PolicyVersion.origin == "rollout", part.is_not(None))
        query = (
            sa.select(PolicyVersion)
            .where(PolicyVersion.engine_id == engine_id, PolicyVersion.version < before)
            .where(PolicyVersion.ack_state == AckState.APPLIED, ~is_slice)
            .order_by(PolicyVersion.version.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def desired_of(self, engine_ids: Collection[str]) -> dict[str, PolicyVersion]:
        """The version that each of these engines is asked to run, without its documents."""
        query = (
            sa.select(PolicyVersion)
            .join(EngineRow, EngineRow.id == PolicyVersion.engine_id)
            .where(PolicyVersion.version == EngineRow.desired_version, EngineRow.id.in_(engine_ids))
            .options(load_only(PolicyVersion.ack_state, PolicyVersion.ack_message, raiseload=True))
        )
        return {row.engine_id: row for row in self._session.scalars(query)}

    def list_page(self, engine_id: str, page: PageRequest) -> Page[PolicyVersion]:
        """Versions of an engine, newest first."""
        query = sa.select(PolicyVersion).where(PolicyVersion.engine_id == engine_id)
        return fetch_page(self._session, query, PolicyVersion.version, page)
