"""What a child process inherits of the one that starts it."""

from __future__ import annotations

import pytest

from api.cli.key_options import CONTROL_KEY_VARIABLE, ENGINE_KEY_VARIABLE, KNOB_KEY_VARIABLE
from engine.wire.child import inherited_environment


@pytest.mark.parametrize(
    "name",
    [
        CONTROL_KEY_VARIABLE,
        ENGINE_KEY_VARIABLE,
        KNOB_KEY_VARIABLE,
        "GEARSHIFT_ADMIN_KEY",
        "GEARSHIFT_DATABASE_URL",
        "GEARSHIFT_JOBS_DATABASE_URL",
        "gearshift_database_url",
    ],
)
def test_a_child_inherits_no_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgresql://me:secret@db/gearshift")
    monkeypatch.setenv("GEARSHIFT_LOG_LEVEL", "debug")
    found = inherited_environment()
    assert name not in found
    assert found["GEARSHIFT_LOG_LEVEL"] == "debug"
