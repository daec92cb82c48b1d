"""Fixtures of the engine's tests: rank processes that outlive a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.rank_pools import RankPools


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[RankPools]:
    """Rank processes by world size, ended with the session."""
    pools = RankPools()
    yield pools
    pools.close()
