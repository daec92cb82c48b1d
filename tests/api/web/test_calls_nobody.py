"""The service calls no address that a request names, but those of observed servers.

Engines come to it and ask, so no address in a request leads it to what only it reaches. Whoever
adds a call gives it a guard, and names it here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.api.worlds import engine_body

ROOT = Path(__file__).parents[3]
OF_THE_SERVICE = (
    "schemas", "documents", "aside", "web", "services", "routes", "dashboard", "control",
    "observed", "jobs",
)  # fmt: skip
# What can open a connection to an address.
CALLERS = (
    "httpx", "httpcore", "requests", "aiohttp", "urllib.request", "urllib3", "http.client",
    "websockets",
)  # fmt: skip
# Its guard: every address is judged after it was looked up, and before it is called
# (tests/api/observed/test_fetch.py).
GUARDED = {"fetch.py: httpcore"}


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_of_the_service_imports_what_calls_addresses() -> None:
    files = [f for room in OF_THE_SERVICE for f in (ROOT / "api" / room).rglob("*.py")]
    assert len(files) > 50
    found = {
        f"{file.name}: {name}"
        for file in files
        for name in _imported(file)
        if any(name == caller or name.startswith(f"{caller}.") for caller in CALLERS)
    }
    assert found == GUARDED


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "http://", "http://user:secret@host", "http://169.254.169.254/latest",
     "http://[fe80::1]/", "gopher://host"],
)  # fmt: skip
def test_an_engine_with_no_address_for_people_is_refused(client: TestClient, url: str) -> None:
    answer = client.post("/v1/engines", json=engine_body(public_url=url))
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/public_url"]
    assert "secret" not in answer.text
