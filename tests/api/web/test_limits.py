"""What the service takes of a client, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPResponse

import pytest

from api.web.settings import ServiceSettings
from engine.spec.limits import RequestLimits
from store import Database
from tests.api.live import running_service
from tests.contracts.bounded_server import KEY, BoundedServerContract, Start, read_json


class TestTheServiceIsBounded(BoundedServerContract):
    post_path = "/v1/tuning-jobs"
    get_path = "/v1/tuning-jobs"
    open_path = "/healthz"

    @pytest.fixture
    def start(self, settings: ServiceSettings, database: Database) -> Start:
        del database  # its schema is what is needed

        @contextmanager
        def start(limits: RequestLimits) -> Iterator[str]:
            bounded = {**settings.model_dump(), "admin_key": KEY, **asdict(limits)}
            with running_service(ServiceSettings(**bounded)) as url:
                yield url

        return start

    def code_of(self, answer: HTTPResponse) -> str:
        assert answer.headers["content-type"] == "application/problem+json"
        return str(read_json(answer)["code"])
