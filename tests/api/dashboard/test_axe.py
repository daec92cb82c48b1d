"""Every page looked at by axe-core, in both colours and at two widths: nothing keeps people out.

axe-core is no package of Python: ``npm install axe-core`` in any folder, then
``GEARSHIFT_AXE=FOLDER/node_modules/axe-core/axe.min.js`` for these tests. With
``GEARSHIFT_SCREENSHOTS=FOLDER`` each page is also taken as a picture, whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.api.dashboard.browsing import NEEDS_CHROMIUM, World, go, log_in, take
from tests.waiting import wait_until

AXE = os.environ.get("GEARSHIFT_AXE")
pytestmark = [
    pytest.mark.slow,
    NEEDS_CHROMIUM,
    pytest.mark.skipif(AXE is None, reason="needs axe-core: GEARSHIFT_AXE=.../axe.min.js"),
]
SERIOUS = ("serious", "critical")
JOB_S = 300.0
TRACE = "arrival_s,input_tokens,output_tokens\n" + "".join(
    f"{i / 2},{8 * (i % 9 + 1)},{i % 5 + 1}\n" for i in range(300)
)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def paths(world: World) -> dict[str, str]:
    """Every page there is, with something on it."""
    workload = world.rest.post("/v1/workloads", content=TRACE).json()
    server = {"name": "west", "system": "vllm", "url": "http://127.0.0.1:9", "plan": "tp=1"}
    observed = _create(world, "/v1/engines:observe", **server)
    sla = "p95_ttft_ms<=500,p95_tpot_ms<=50"
    rollout = _create(
        world,
        "/v1/rollouts",
        engine_id=world.engine_id,
        patch={"caps": {"max_num_seqs": 96}, "sla": sla},
        replay={"skip": True},
    )
    job = _create(
        world,
        "/v1/tuning-jobs",
        model="llama-3.1-8b",
        hardware="1xh200",
        num_devices=1,
        workload="poisson:rate=4,input=512,output=64,seconds=20",
        sla=sla,
        trials=3,
        options={"capacity_table": True},
    )
    job_path = f"/v1/tuning-jobs/{job['id']}"
    wait_until(lambda: world.rest.get(job_path).json()["finished_at"], timeout_s=JOB_S)
    answer_id = world.rest.get(job_path).json()["recommendation_id"]
    answer = world.rest.get(f"/v1/recommendations/{answer_id}").json()["recommendation"]
    _create(world, f"/v1/engines/{observed['id']}:bind", capacity_table=answer["capacity_table"])
    world.ask(20)
    return {
        "fleet": "/",
        "engine": f"/engines/{world.engine_id}",
        "observed engine": f"/engines/{observed['id']}",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{rollout['id']}",
        "jobs": "/jobs",
        "new job": "/jobs/new",
        "job": f"/jobs/{job['id']}",
        "recommendation": f"/recommendations/{answer_id}",
        "workloads": "/workloads",
        "workload": f"/workloads/{workload['id']}",
        "what if": "/what-if",
        "new engine": "/engines/new",
        "keys": "/keys",
        "audit": "/audit",
        "not found": "/jobs/job_none",
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_page_keeps_anybody_out(
    browser: Browser, world: World, paths: dict[str, str], colours: str, width: int
) -> None:
    found: dict[str, list[str]] = {}
    with browser.new_context(
        base_url=world.url, color_scheme=colours, viewport={"width": width, "height": 900}
    ) as context:
        login = context.new_page()
        login.goto("/login")
        found["login"] = _violations(login)
        page = log_in(context)
        for name, path in paths.items():
            go(page, path)
            page.wait_for_timeout(1500)  # charts come after the page
            found[name] = _violations(page)
            found[f"{name}, its width"] = _too_wide(page)
            take(page, f"{name}-{width}-{colours}".replace(" ", "-"), is_whole=True)
        go(page, paths["keys"])
        page.get_by_label("Key", exact=True).click()
        page.get_by_role("option").first.click()
        page.get_by_role("button", name="Rotate ...").click()
        page.get_by_role("button", name="Keep it").wait_for()
        page.wait_for_timeout(1000)
        found["rotation"] = _violations(page)
        go(page, paths["engine"])
        page.get_by_label("Most sequences in a step").fill("48")
        page.get_by_role("button", name="Show what would change").click()
        prove = page.get_by_role("button", name="Prove it first")
        newest = page.get_by_role("button", name="Put my edits on the newest version")
        prove.or_(newest).first.wait_for()
        if newest.is_visible():  # the rollout took its turn in between
            newest.click()
        prove.click()
        page.get_by_role("heading", name="Prove it before it spreads").wait_for()
        page.wait_for_timeout(1000)  # until it has faded in
        found["dialog"] = _violations(page)
        take(page, f"dialog-{width}-{colours}")
    assert {name: told for name, told in found.items() if told} == {}


def _violations(page: Page) -> list[str]:
    """Serious ones: the rule, and the first place that breaks it."""
    assert AXE is not None, "else it is skipped"
    page.evaluate(Path(AXE).read_text())
    answer = page.evaluate("() => axe.run()")
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}"
        for one in answer["violations"]
        if one["impact"] in SERIOUS
    ]


def _too_wide(page: Page) -> list[str]:
    """What a page must be moved sideways for."""
    more = int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
    return [f"{more} pixels"] if more > 0 else []


def _create(world: World, path: str, **body: Any) -> Json:
    answer = world.rest.post(path, json=body)
    assert answer.is_success, answer.text
    return dict(answer.json())
