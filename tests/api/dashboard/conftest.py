"""What tests in a browser share; each file has a service of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from engine.models.create import create_model
from tests.api.cli.served import serving
from tests.api.conftest import ADMIN
from tests.api.dashboard.browsing import CHROMIUM, SLOW_MS, World
from tests.waiting import wait_until

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    create_model(folder / "models" / "tiny", preset="tiny", seed=1)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")}
    own = {
        "GEARSHIFT_DATA_DIR": str(folder),
        "GEARSHIFT_PORT": "0",
        "GEARSHIFT_ADMIN_KEY": ADMIN,
        "GEARSHIFT_CONTROL_INTERVAL_S": "1",
    }
    command = [sys.executable, "-m", "api.cli.main", "serve", "--json"]
    with subprocess.Popen(
        command, env={**clean, **own}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            url = json.loads(service.stdout.readline())["url"]
            rest = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"})
            with rest, pytest.MonkeyPatch.context() as patch:
                patch.setenv("GEARSHIFT_CONTROL_KEY", ADMIN)
                patch.setenv("XDG_DATA_HOME", str(folder))
                words = ("--model", folder / "models" / "tiny", "--paced", "2xh200")
                plan = ("--plan", "sp=2,shift=64", "--name", "chat-east", "--control", url)
                caps = ("--max-num-seqs", 256, "--max-num-batched-tokens", 8192)
                with serving(*words, *plan, *caps) as engine:
                    wait_until(lambda: rest.get("/v1/engines").json())
                    yield World(url=url, rest=rest, engine=engine.http)
        finally:
            service.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=SLOW_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser, world: World) -> Iterator[BrowserContext]:
    """A fresh browser; whatever it loads must come from the service."""
    context = browser.new_context(base_url=world.url, viewport={"width": 1440, "height": 900})
    context.set_default_timeout(SLOW_MS)
    elsewhere: list[str] = []
    socket = world.url.replace("http", "ws", 1)
    context.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((world.url, socket, "data:", "blob:"))
            else elsewhere.append(request.url)
        ),
    )
    yield context
    context.close()
    assert elsewhere == []
