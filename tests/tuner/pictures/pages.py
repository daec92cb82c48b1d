"""What a page of a picture holds, read as a browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CALL = re.compile(r'Plotly\.newPlot\("picture", (.*)\);$', re.DOTALL)

FIGURES = re.compile(r"const FIGURES = (.*); const CONFIG", re.DOTALL)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.loads: list[str] = []
        self.policies: list[str] = []
        self.headings: list[str] = []
        self._is_script = self._is_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self._is_script, self._is_heading = tag == "script", tag == "h2"
        self.loads += [value for name in ("src", "href") if (value := own.get(name))]
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(own["content"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._is_script = self._is_heading = False

    def handle_data(self, data: str) -> None:
        if self._is_heading:
            self.headings.append(data)
        if self._is_script:
            self.scripts.append(data)


def read_page(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Plotly's data and layout; the page must load nothing and have its own code."""
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert page.loads == []
    assert [policy.split(";")[0] for policy in page.policies] == ["default-src 'none'"]
    library, call = ("".join(part) for part in (page.scripts[:-1], page.scripts[-1]))
    assert len(library) > 1_000_000
    found = CALL.search(call)
    assert found is not None
    data, layout, _ = json.loads(f"[{found[1]}]")
    return data, layout


def read_report_page(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Headings and figures of a report; its links stay inside it and it loads nothing."""
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert all(link.startswith("#") for link in page.loads)
    assert [policy.split(";")[0] for policy in page.policies] == ["default-src 'none'"]
    found = FIGURES.search(page.scripts[-1])
    assert found is not None
    return page.headings, json.loads(found[1])


def names(data: list[dict[str, Any]]) -> str:
    """All legends as one text, without the breaks of their lines."""
    return "; ".join(trace["name"].replace("<br>", " ") for trace in data)
