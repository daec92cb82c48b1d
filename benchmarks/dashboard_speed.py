"""Question: how soon is the dashboard there with 100 engines and a job of 1,000 trials?

Starts ``gearshift serve`` on a database of its own, lets engines report to it every second, and
opens pages in chromium: from the address to the rows that stand on them. Then a page stays open
while engines report, and it is asked how soon it answers a key, and for how long it was busy. What
if is asked beside it, without a browser: the glance from step times.

    python -m benchmarks.dashboard_speed --out FILE.md
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from api.services.what_if import WhatIf, glance
from benchmarks.control_plane_scale import (
    ADMIN,
    connect_engine,
    prepare,
    running_service,
    until_ready,
)
from benchmarks.many_engines import Crowd, Engine, Times, first_times
from benchmarks.many_trials import add_job_of
from benchmarks.quiet import OtherPrograms, own_cpu_s
from benchmarks.reporting import publish

ASKED_LOAD_S, ASKED_GLANCE_MS = 2.0, 200.0
SHOWN_ROWS = {"fleet": 50, "job": 20}
BUSY = """() => {
  window.busy_ms = []
  new PerformanceObserver(list => list.getEntries().forEach(e => busy_ms.push(e.duration)))
    .observe({entryTypes: ["longtask"]})
}"""
Json = dict[str, Any]


@dataclass
class Found:
    """Times of one page: opened by a browser that knows nothing, and again by the same. ``cpu_s``
    is what service, engines and browser used for each opening, on average."""

    first_s: list[float]
    again_s: list[float]
    cpu_s: float
    key_ms: list[float]
    busy_ms: list[float]
    open_s: float


def main() -> None:
    """Measure and write the report."""
    options = _options()
    load = os.getloadavg()[0]
    with OtherPrograms() as others, tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/gearshift.db"
        prepare(url)
        job_id = add_job_of(url, options.trials, seed=options.seed)
        with running_service(url, Path(folder)) as (service_url, _), _engines(service_url, options):
            paths = {"fleet": "/", "job": f"/jobs/{job_id}"}
            pages = _browse(service_url, paths, options)
        used_s = time.process_time()
        glances_ms = _glances(options.glances, options.seed)
        used_ms = (time.process_time() - used_s) / len(glances_ms) * 1e3
    text = _report(pages, glances_ms, used_ms, options, load, others.share)
    publish(text, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=100)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--opens", type=int, default=10, help="times that each page is opened")
    parser.add_argument("--open-s", type=float, default=20.0, help="seconds that one stays open")
    parser.add_argument("--glances", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@contextmanager
def _engines(url: str, options: argparse.Namespace) -> Iterator[None]:
    """Engines that report every second until the block ends."""
    crowd = Crowd(num_engines=options.engines, every_s=1.0, requests=2, seed=options.seed)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> list[Engine]:
        await until_ready(url)
        return [await connect_engine(url, crowd, number) for number in range(crowd.num_engines)]

    async def report(engines: list[Engine]) -> None:
        now_s = time.monotonic()
        starts = zip(engines, first_times(crowd, now_s), strict=True)
        times = Times()
        await asyncio.gather(
            *(engine.beat(first_s, np.inf, np.inf, times) for engine, (first_s, _) in starts)
        )

    engines = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    reports = asyncio.run_coroutine_threadsafe(report(engines), loop)
    time.sleep(5.0)  # until each has reported some times
    try:
        yield
    finally:
        reports.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()  # they hear of it
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _browse(url: str, paths: dict[str, str], options: argparse.Namespace) -> dict[str, Found]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        found = {name: _page(browser, url, name, path, options) for name, path in paths.items()}
        browser.close()
    return found


def _page(browser: Browser, url: str, name: str, path: str, options: argparse.Namespace) -> Found:
    first_s, again_s = [], []
    used_s = own_cpu_s()
    for _ in range(options.opens):
        with browser.new_context(base_url=url, viewport={"width": 1440, "height": 900}) as context:
            page = context.new_page()
            page.request.post("/login", form={"key": ADMIN})
            first_s.append(_open(page, name, path))
            again_s.append(_open(page, name, path))
    cpu_s = (own_cpu_s() - used_s) / (2 * options.opens)
    with browser.new_context(base_url=url, viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        page.request.post("/login", form={"key": ADMIN})
        _open(page, name, path)
        page.evaluate(BUSY)
        key_ms: list[float] = []
        end_s = time.monotonic() + options.open_s
        while time.monotonic() < end_s:
            page.wait_for_timeout(1000)
            key_ms.append(_key(page, name, len(key_ms)))
        busy_ms = page.evaluate("busy_ms")
    return Found(first_s, again_s, cpu_s, key_ms, busy_ms, options.open_s)


def _open(page: Page, name: str, path: str) -> float:
    """Seconds until its rows stand there and it hears what is typed."""
    begin_s = time.monotonic()
    page.goto(path, wait_until="commit")
    page.wait_for_function(
        "rows => window.did_handshake && document.querySelectorAll('tbody tr').length >= rows",
        arg=SHOWN_ROWS[name],
        polling=20,
    )
    return time.monotonic() - begin_s


def _key(page: Page, name: str, number: int) -> float:
    """Milliseconds until the page shows what was asked for."""
    if name == "fleet":
        # Two digits: no other name begins so.
        wanted = f"engine-{10 + 7 * number % 89}"
        box = page.get_by_label("Show engines with")
        begin_s = time.monotonic()
        box.fill(wanted)
        page.wait_for_function(
            "name => document.querySelector('tbody tr a')?.textContent === name"
            " && document.querySelectorAll('tbody tr').length === 1",
            arg=wanted,
            polling=10,
        )
    else:
        before = page.locator("tbody tr td").first.inner_text()
        begin_s = time.monotonic()
        page.get_by_role("button", name="Next page").click()
        page.wait_for_function(
            "before => document.querySelector('tbody tr td').textContent.trim() !== before",
            arg=before,
            polling=10,
        )
    return (time.monotonic() - begin_s) * 1e3


def _glances(number: int, seed: int) -> list[float]:
    """Milliseconds of the answer from step times, for questions drawn by chance."""
    rng = random.Random(seed)
    return [_timed_ms(_question(rng)) for _ in range(number)]


def _question(rng: random.Random) -> WhatIf:
    plan = rng.choice(("tp=8", "dp=2,tp=4", "sp=4,tp=2,shift"))
    return WhatIf(
        model=rng.choice(("llama-3.1-8b", "qwen3-32b")),
        hardware=rng.choice(("8xh100", "8xh200", "8xb200")),
        plan=plan,
        rate_rps=rng.uniform(0.5, 30),
        input_tokens=rng.randint(50, 8000),
        output_tokens=rng.randint(10, 1000),
        sla="p95_ttft_ms<=1000,p95_tpot_ms<=50",
        backend="gearshift" if "shift" in plan else "vllm",
    )


def _timed_ms(asked: WhatIf) -> float:
    begin_s = time.monotonic()
    glance(asked)
    return (time.monotonic() - begin_s) * 1e3


def _report(
    pages: dict[str, Found],
    glances_ms: list[float],
    used_ms: float,
    options: argparse.Namespace,
    load: float,
    others: float,
) -> str:
    lines = [
        f"# The dashboard with {options.engines} engines and a job of {options.trials:,} trials",
        "",
        f"Engines report every second. Each page was opened {options.opens} times in chromium: by "
        "a browser that had loaded nothing before, and again by the same; until its rows stand "
        "there and it hears what is typed. Then one page stayed open for "
        f"{options.open_s:g} s, and once a second the fleet was asked for one engine by name, the "
        "job for its next 20 trials. Busy are tasks of the page that took more than 50 ms. Asked: "
        f"loads under {ASKED_LOAD_S:g} s and stays responsive.",
        "",
        "| page | first, s: p50 | max | again, s: p50 | max | CPU of an opening, s | "
        "a key, ms: p50 | max | busy, share of time | longest, ms |",
        "|" + "---|" * 10,
        *(_row(name, found) for name, found in pages.items()),
        "",
        f"What if, at a glance ({len(glances_ms)} questions drawn by chance; asked: under "
        f"{ASKED_GLANCE_MS:g} ms): p50 {np.percentile(glances_ms, 50):.1f} ms, p99 "
        f"{np.percentile(glances_ms, 99):.1f} ms, max {max(glances_ms):.1f} ms; the first of a "
        f"process, which reads the catalog, among them. CPU of one: {used_ms:.1f} ms on average.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, NiceGUI {version('nicegui')}, SQLite, seed {options.seed}. "
        "Service, engines and browser ran on the same cores; load average before the run "
        f"{load:.1f}; programs beside them used {others:.0%} of all cores.",
        "",
        "```",
        f"python -m benchmarks.dashboard_speed --engines {options.engines} --trials "
        f"{options.trials} --opens {options.opens} --open-s {options.open_s:g} --glances "
        f"{options.glances} --seed {options.seed}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, found: Found) -> str:
    cells = [
        name,
        *(f"{f(times):.2f}" for times in (found.first_s, found.again_s) for f in (np.median, max)),
        f"{found.cpu_s:.2f}",
        *(f"{f(found.key_ms):.0f}" for f in (np.median, max)),
        f"{sum(found.busy_ms) / 1e3 / found.open_s:.1%}",
        f"{max(found.busy_ms, default=0.0):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
