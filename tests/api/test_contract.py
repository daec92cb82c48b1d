"""The service does what its description says, over what an earlier version had kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from api.web.settings import ServiceSettings
from migrations.runner import upgrade
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.described import check_contract
from tests.migrations.stored import DATABASES, load_dump

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).with_name("schemathesis.toml")
# Whose ids are tried beside such as nothing has.
TABLES = ("engines", "tuning_jobs", "recommendations")


@pytest.fixture
def service_url(database_url: str) -> str:
    """Both databases: what one keeps as it is, the other may refuse."""
    return database_url


@pytest.fixture
def database(settings: ServiceSettings) -> Iterator[Database]:
    """A job that was tuned, applied and controlled."""
    database = Database(settings.effective_database_url)
    upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        load_dump(connection, DATABASES / "0001.sql")
    upgrade(database.engine)
    yield database
    database.close()


@contextmanager
def ending_jobs(url: str) -> Iterator[None]:
    """Cancel queued jobs, which no worker takes here: a stream of events ends with its job."""
    is_over = threading.Event()

    def cancel() -> None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            while not is_over.wait(0.5):
                for job in http.get("/v1/tuning-jobs?state=queued&limit=500").json():
                    http.post(f"/v1/tuning-jobs/{job['id']}:cancel")

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        yield
    finally:
        is_over.set()
        canceller.join()


def test_no_operation_answers_what_its_description_does_not_say(
    settings: ServiceSettings, database: Database, tmp_path: Path
) -> None:
    with database.engine.connect() as connection:
        known = {
            name: [str(row.id) for row in connection.execute(sa.text(f"SELECT id FROM {name}"))]
            for name in TABLES
        }
    unlimited = settings.model_copy(update={"rate_per_s": 0.0})
    with running_service(unlimited) as url, ending_jobs(url):
        check_contract(url, key=ADMIN, config=CONFIG, folder=tmp_path, known=known)
