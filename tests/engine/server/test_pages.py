from __future__ import annotations

from tests.docs_pages import check_pages, vague_operations
from tests.engine.server.conftest import Server


def test_the_pages_of_the_engine_load_nothing_from_elsewhere(slow_server: Server) -> None:
    check_pages(slow_server.http)


def test_every_operation_of_the_engine_says_what_it_does(slow_server: Server) -> None:
    assert vague_operations(slow_server.http.get("/openapi.json").json()) == []
