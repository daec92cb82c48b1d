"""A running application over a fresh database, and clients of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from store import Database
from tests.postgres import BOTH_SLOWLY, current_database

ADMIN = "gs_test_admin_key_that_is_long_enough"
MODEL_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}


@pytest.fixture(params=BOTH_SLOWLY)
def service_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The service's database; modules whose locks matter take ``current_url`` instead."""
    with current_database(request) as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, service_url: str) -> ServiceSettings:
    """Settings of a quick service that never acts on its own."""
    return ServiceSettings(
        data_dir=tmp_path,
        model_root=str(tmp_path),
        trace_root=str(tmp_path),
        database_url=service_url,
        admin_key=ADMIN,
        node="node-1",
        devices=4,
        control_interval_s=3600,
        observe_interval_s=3600,
        poll_interval_s=0.02,
        sse_heartbeat_s=0.1,
        run_worker=False,
        dashboard=False,  # tests/api/dashboard has one, since there may be one per process
    )


@pytest.fixture
def database(settings: ServiceSettings) -> Iterator[Database]:
    """The service's database with the newest schema."""
    database = Database(settings.effective_database_url)
    yield database
    database.close()


@pytest.fixture
def anonymous(settings: ServiceSettings, database: Database) -> Iterator[TestClient]:
    """A client without a key."""
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def client(anonymous: TestClient) -> TestClient:
    """A client with the admin key."""
    anonymous.headers["Authorization"] = f"Bearer {ADMIN}"
    return anonymous


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model folder as far as the service looks into it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    return folder


@pytest.fixture
def job_body(model_dir: Path) -> dict[str, Any]:
    """A tuning job that the service accepts."""
    return {
        "model_dir": str(model_dir),
        "num_devices": 2,
        "workload": "poisson:rate=4,input=64,output=8,seconds=5",
        "sla": "p95_ttft_ms<=500",
        "trials": 4,
        "hardware": "8xh200",
    }
