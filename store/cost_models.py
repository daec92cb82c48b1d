"""Cost models, kept per hardware fingerprint."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import CostModel
from store.models.base import Json
from store.paging import Page, PageRequest, fetch_page


class CostModelRepository:
    """Reads and writes cost models; a document never changes once kept."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, *, fingerprint: str, document: Json, created_by: str) -> CostModel:
        model = CostModel(fingerprint=fingerprint, document=document, created_by=created_by)
        self._session.add(model)
        self._session.flush()
        return model

    def get(self, cost_model_id: str) -> CostModel:
        """Raises NotFoundError when there is none."""
        model = self._session.get(CostModel, cost_model_id)
        if model is None:
            raise NotFoundError("cost model", cost_model_id)
        return model

    def find_newest(self, fingerprint: str, *, weights: str | None = None) -> CostModel | None:
        """The newest model of this hardware, and where ``weights`` are named, of layers held so; in
        models of older versions they are not told."""
        told = CostModel.document["weights"].as_string()
        is_of = sa.true() if weights is None else sa.or_(told.is_(None), told == weights)
        query = (
            sa.select(CostModel)
            .where(CostModel.fingerprint == fingerprint, is_of)
            .order_by(CostModel.id.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def list_page(self, page: PageRequest) -> Page[CostModel]:
        """Cost models, newest first."""
        return fetch_page(self._session, sa.select(CostModel), CostModel.id, page)
