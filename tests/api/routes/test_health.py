"""What an orchestrator asks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from migrations.runner import upgrade
from store import Database
from tests.api.conftest import ADMIN


def test_a_service_with_room_is_ready(anonymous: TestClient) -> None:
    assert anonymous.get("/readyz").json() == {"status": "ready"}


def test_a_service_whose_disk_is_nearly_full_is_not_ready(
    settings: ServiceSettings, database: Database
) -> None:
    greedy = settings.model_copy(update={"disk_reserve_mib": 2**40})
    with TestClient(create_app(greedy)) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "GEARSHIFT_DISK_RESERVE_MIB" in answer.json()["detail"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_service_whose_disk_is_full_is_not_ready_until_there_is_room(
    settings: ServiceSettings, small_disk: Path
) -> None:
    url = f"sqlite:///{small_disk / 'gearshift.db'}"
    own = settings.model_copy(update={"database_url": url, "disk_reserve_mib": 1})
    database = Database(url)
    upgrade(database.engine)
    database.close()
    with TestClient(create_app(own)) as client:
        assert client.get("/readyz").status_code == 200
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            while os.statvfs(small_disk).f_bavail:
                file.write(b"0" * os.statvfs(small_disk).f_bsize)
                file.flush()
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        key = {"Authorization": f"Bearer {ADMIN}"}
        assert client.get("/v1/tuning-jobs", headers=key).status_code == 200, "it can be read"
        ballast.unlink()
        assert client.get("/readyz").status_code == 200
