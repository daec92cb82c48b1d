"""What the documentation pages of any of our servers must hold."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any, Protocol

# What each page must bring, by its path.
KINDS = {
    "text/html": ("/docs", "/redoc"),
    "text/javascript": ("/docs-assets/swagger-ui-bundle.js", "/docs-assets/redoc.standalone.js"),
    "text/css": ("/docs-assets/swagger-ui.css",),
    "image/png": ("/docs-assets/favicon.png",),
    "application/json": ("/openapi.json",),
}


class Client(Protocol):
    def get(self, url: str, /) -> Any: ...


class _Loads(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            names = ("src", "href", "spec-url")
            self.addresses |= {value for name, value in attrs if name in names and value}


def loaded_by(html: str) -> set[str]:
    """Addresses of everything that the page loads."""
    page = _Loads()
    page.feed(html)
    return page.addresses


def check_pages(client: Client) -> None:
    """Both pages load only the server's own paths, each of which answers with its type."""
    kinds = {path: kind for kind, paths in KINDS.items() for path in paths}
    found: set[str] = set()
    for page in KINDS["text/html"]:
        answer = client.get(page)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http" not in answer.headers["content-security-policy"]
        found |= loaded_by(answer.text)
        assert "/openapi.json" in answer.text
        assert "http" not in answer.text.replace("http-equiv", "")
    assert found <= set(kinds), f"from elsewhere: {found - set(kinds)}"
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].split(";")[0] == kind, path


def vague_operations(document: dict[str, Any]) -> list[str]:
    """Operations without a description, or whose summary is a function's name in title case."""
    return [
        f"{method} {path}: {operation.get('summary')!r}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if not operation.get("description")
        or len(operation["summary"].split()) < 2
        or operation["summary"].istitle()
    ]
