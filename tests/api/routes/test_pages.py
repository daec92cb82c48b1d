from __future__ import annotations

from starlette.testclient import TestClient

from tests.docs_pages import check_pages, vague_operations


def test_the_pages_of_the_service_load_nothing_from_elsewhere(anonymous: TestClient) -> None:
    check_pages(anonymous)


def test_every_operation_of_the_service_says_what_it_does(anonymous: TestClient) -> None:
    assert vague_operations(anonymous.get("/openapi.json").json()) == []
