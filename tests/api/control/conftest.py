"""A controller, and an engine that it controls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.control.controller import Controller
from policies.controller import ControlLimits
from store import Database
from tests.api.control.control_world import scheduled
from tests.api.worlds import context_of, require_no_failure


@pytest.fixture
def controller(client: TestClient) -> Iterator[Controller]:
    """A controller that acts at once on what it sees."""
    context = context_of(client)
    limits = ControlLimits(ema_alpha=1.0, cool_down_down_s=0.0, settle_s=0.0, min_requests=5)
    yield Controller(context, limits)
    require_no_failure(client)


@pytest.fixture
def engine_id(client: TestClient, database: Database) -> str:
    """An engine that runs a recommendation with a schedule."""
    return scheduled(client, database)
