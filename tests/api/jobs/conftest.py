"""Jobs and their settings name one database."""

from __future__ import annotations

import pytest


@pytest.fixture
def service_url(current_url: str) -> str:
    """Both databases."""
    return current_url
