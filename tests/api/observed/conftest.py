"""One service for all tests of a file; what they register is gone after each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from store import Database
from store.models import EngineRow
from tests.api.conftest import ADMIN
from tests.postgres import BOTH_SLOWLY, PostgresCluster


@pytest.fixture(scope="module", params=BOTH_SLOWLY)
def service_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("service") / "gearshift.db"
        shutil.copy(request.getfixturevalue("newest_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
    url = cluster.create_database(like=request.getfixturevalue("newest_postgres"))
    yield url
    cluster.drop_database(url)


@pytest.fixture(scope="module")
def settings(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Settings of a service that never acts on its own."""
    return ServiceSettings(
        data_dir=tmp_path_factory.mktemp("data"),
        database_url=service_url,
        admin_key=ADMIN,
        node="node-1",
        devices=4,
        control_interval_s=3600,
        observe_interval_s=3600,
        run_worker=False,
        dashboard=False,
    )


@pytest.fixture(scope="module")
def database(settings: ServiceSettings) -> Iterator[Database]:
    database = Database(settings.effective_database_url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def client(settings: ServiceSettings, database: Database) -> Iterator[TestClient]:
    del database  # its schema is what is needed
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = f"Bearer {ADMIN}"
        yield client


@pytest.fixture(autouse=True)
def _as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines of a test and what it changed of the settings are gone after it."""
    if "client" not in request.fixturenames:
        yield
        return
    settings: ServiceSettings = request.getfixturevalue("settings")
    database: Database = request.getfixturevalue("database")
    before = settings.model_dump()
    yield
    for name, value in before.items():
        setattr(settings, name, value)
    with database.begin() as uow:
        uow.session.execute(sa.delete(EngineRow))
