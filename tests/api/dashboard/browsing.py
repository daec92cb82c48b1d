"""A service with its worker and an engine, and a real browser that looks at them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.api.conftest import ADMIN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: apt-get install chromium"
)
SLOW_MS = 30_000
# Where pictures of the pages are wanted, if they are.
SCREENSHOTS = os.environ.get("GEARSHIFT_SCREENSHOTS")
TALL = 1180
LOADED = 12
MOST_COLOURS = 128


@dataclass(frozen=True, kw_only=True)
class World:
    """A service with a worker and one paced engine, and clients of both."""

    url: str
    rest: httpx.Client
    engine: httpx.Client

    @property
    def engine_id(self) -> str:
        return str(self.rest.get("/v1/engines").json()[0]["id"])

    def ask(self, times: int) -> None:
        """Have the engine complete a prompt, a few at a time."""
        body = {"model": "tiny", "prompt": "the quick brown fox " * 20, "max_tokens": 64}
        with ThreadPoolExecutor(8) as pool:
            asked = (pool.submit(self.engine.post, "/v1/completions", json=body)
                     for _ in range(times))  # fmt: skip
            assert {answer.result().status_code for answer in list(asked)} == {200}

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Clients that ask all the time, with long and short prompts, until the block ends."""
        is_over = threading.Event()

        def client(number: int) -> None:
            while not is_over.wait(0.01 * (number % 5)):
                words = "the quick brown fox " * (1 + 7 * number % 40)
                body = {"model": "tiny", "prompt": words, "max_tokens": 16 + 5 * number % 48}
                self.engine.post("/v1/completions", json=body)
                number += 1

        with ThreadPoolExecutor(LOADED) as pool:
            for number in range(LOADED):
                pool.submit(client, number)
            try:
                yield
            finally:
                is_over.set()

    def make_key(self, *scopes: str) -> tuple[str, str]:
        """Id and secret of a new key."""
        answer = self.rest.post("/v1/api-keys", json={"name": "guest", "scopes": list(scopes)})
        return answer.json()["id"], answer.json()["secret"]

    def key(self, key_id: str) -> dict[str, Any]:
        """A key as the service lists it."""
        found = self.rest.get("/v1/api-keys", params={"limit": 500}).json()
        return next(key for key in found if key["id"] == key_id)


def log_in(visit: BrowserContext, secret: str = ADMIN) -> Page:
    """The fleet's page after the login."""
    page = visit.new_page()
    page.goto("/")
    page.get_by_label("Key").fill(secret)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    return page


def take(page: Page, name: str, *, is_whole: bool = False) -> None:
    """A picture, where they are wanted: of the top of the page, or of all of it."""
    if SCREENSHOTS is None:
        return
    if not is_whole and page.viewport_size is not None:
        page.set_viewport_size({"width": page.viewport_size["width"], "height": TALL})
    path = Path(SCREENSHOTS) / f"{name}.png"
    page.screenshot(path=path, full_page=is_whole)
    few = Image.open(path).convert("RGB").quantize(MOST_COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)  # a third of the bytes


def go(page: Page, path: str) -> None:
    """Open a page and wait until it hears what is typed."""
    page.goto(path)
    page.wait_for_function("() => window.did_handshake")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
