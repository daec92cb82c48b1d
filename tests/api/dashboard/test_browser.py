"""What somebody does in a real browser, with a real service, its worker and an engine.

With ``GEARSHIFT_SCREENSHOTS=docs/pictures`` the pictures of the documents are taken again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.api.dashboard.browsing import (
    NEEDS_CHROMIUM,
    SCREENSHOTS,
    World,
    go,
    log_in,
    take,
)

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
JOB_MS = 180_000
LOAD = "poisson:rate=4,input=512,output=64,seconds=20"
# One under which settings differ.
PICTURED_LOAD = "poisson:rate=16,input=1024,output=128,seconds=20"
# For a picture of an engine at work: as long as the curves that it shows.
LOADED_MS = 60_000
APPLIED = re.compile(r"^applied in [0-9.]+ s")


def test_an_engine_shows_what_it_serves(visit: BrowserContext, world: World) -> None:
    sla = {"sla": "p95_ttft_ms<=80,p95_tpot_ms<=5"}
    path = f"/v1/engines/{world.engine_id}/policy"
    assert world.rest.patch(path, json=sla, headers={"If-Match": "*"}).status_code == 200
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    expect(page.get_by_text("no requests have ended").first).to_be_visible()
    world.ask(60)
    expect(page.get_by_text(re.compile("base [0-9]+ %, shift [0-9]+ %"))).to_be_visible()
    expect(page.get_by_text("no requests have ended")).to_have_count(0)
    expect(page.get_by_text("SLA p95_ttft_ms<=80")).to_be_visible()  # its line
    if SCREENSHOTS is not None:
        with world.loaded():
            page.wait_for_timeout(LOADED_MS)
            take(page, "engine")


def test_somebody_tunes_and_applies(visit: BrowserContext, world: World) -> None:
    path = f"/v1/engines/{world.engine_id}/policy"
    version = world.rest.get(path).json()["version"]
    page = log_in(visit)
    expect(page.get_by_role("link", name="chat-east")).to_be_visible()
    expect(page.get_by_text("fine", exact=True)).to_be_visible()

    page.get_by_label("Show engines with").fill("no such")
    expect(page.get_by_text("No engine has that.")).to_be_visible()
    page.get_by_label("Show engines with").fill("CHAT-e")
    expect(page.get_by_role("link", name="chat-east")).to_be_visible()

    page.get_by_role("link", name="Tuning jobs").click()
    page.get_by_role("link", name="New tuning job").click()
    page.get_by_label("SLA").fill("p95_tftt<=500")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("did you mean 'p95_ttft_ms'")  # at its field

    page.get_by_label("SLA").fill("p95_ttft_ms<=500,p95_tpot_ms<=50")
    trials, load = (3, LOAD) if SCREENSHOTS is None else (10, PICTURED_LOAD)
    page.get_by_label("Workload").fill(load)
    page.get_by_label("Trials").fill(str(trials))
    page.get_by_role("button", name="Start the job").click()
    expect(page).to_have_url(re.compile("/jobs/job_"))
    expect(page.get_by_text("succeeded")).to_be_visible(timeout=JOB_MS)
    expect(page.get_by_text(f"{trials} of {trials}", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="Pareto front")).to_be_visible()
    expect(page.locator("svg").get_by_text("SLA p95_ttft_ms<=500")).to_be_visible()
    if SCREENSHOTS is not None:
        page.wait_for_timeout(5000)  # until all trials are compared
    take(page, "job")
    with page.expect_download() as report:
        page.get_by_role("button", name="Download the report").click()
    assert "p95_ttft_ms" in report.value.path().read_text()

    page.get_by_role("link", name="See the recommendation").click()
    expect(page.get_by_text("vllm serve").first).to_be_visible()
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_role("cell", name="caps.max_num_batched_tokens")).to_be_visible()
    assert world.rest.get(path).json()["version"] == version
    page.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_role("button", name="Yes, apply").click()
    expect(page.get_by_text(f"Version {version + 1} is asked for")).to_be_visible()

    page.get_by_role("link", name="See the engine").click()
    expect(page.get_by_role("heading", name="chat-east")).to_be_visible()
    written = page.get_by_role("row").filter(has_text="applied in the dashboard")
    expect(written.get_by_role("cell", name=APPLIED)).to_be_visible()
    in_force = world.rest.get(f"/v1/engines/{world.engine_id}").json()
    assert in_force["applied_version"] == version + 1
    assert in_force["recommendation_id"] is not None
    expect(page.get_by_text("p95_ttft_ms<=500,p95_tpot_ms<=50").first).to_be_visible()


def test_an_edit_of_a_stale_version_changes_nothing_until_it_is_rebased(
    visit: BrowserContext, world: World
) -> None:
    path = f"/v1/engines/{world.engine_id}/policy"
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    page.get_by_label("Most sequences in a step").fill("48")

    etag = world.rest.get(path).headers["etag"]
    other = {"caps": {"max_queue": 99}}
    assert world.rest.patch(path, json=other, headers={"If-Match": etag}).status_code == 200
    newest = world.rest.get(path).json()["version"]
    expect(page.get_by_text(f"version {newest} is asked for now")).to_be_visible()

    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_role("alert")).to_contain_text("somebody wrote a newer version")
    assert world.rest.get(path).json()["version"] == newest

    page.get_by_role("button", name="Put my edits on the newest version").click()
    expect(page.get_by_role("cell", name="caps.max_num_seqs")).to_be_visible()
    expect(page.get_by_label("Most waiting requests")).to_have_value("99")
    page.get_by_role("button", name=f"Apply as version {newest + 1}").click()
    expect(page.get_by_text(f"Version {newest + 1} is asked for")).to_be_visible()
    caps = world.rest.get(path).json()["requested"]["caps"]
    assert (caps["max_num_seqs"], caps["max_queue"]) == (48, 99)


def test_a_wrong_value_is_told_and_changes_nothing(visit: BrowserContext, world: World) -> None:
    path = f"/v1/engines/{world.engine_id}/policy"
    before = world.rest.get(path).json()["version"]
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    page.get_by_label("Most sequences in a step").fill("many")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_text("/caps/max_num_seqs")).to_be_visible()
    page.get_by_label("Most sequences in a step").fill("999999")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_text("restart it with a wider envelope")).to_be_visible()
    assert world.rest.get(path).json()["version"] == before


def test_a_change_is_begun_as_a_rollout_and_taken_back(visit: BrowserContext, world: World) -> None:
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    page.get_by_label("Most sequences in a step").fill("40")
    page.get_by_label("SLA").fill("p95_ttft_ms<=500")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_text("No simulation of the last hours").or_(
        page.get_by_role("cell", name="SLA attainment"))).to_be_visible()  # fmt: skip
    page.get_by_role("button", name="Prove it first").click()
    page.get_by_text("Do not simulate it first").click()
    page.get_by_role("button", name="Begin the rollout").click()
    expect(page).to_have_url(re.compile("/rollouts/ro_"))
    expect(page.get_by_role("cell", name="caps.max_num_seqs")).to_be_visible()
    expect(page.get_by_text("takes turns with what runs").first).to_be_visible()
    page.get_by_role("button", name="Cancel, and go back").click()
    page.get_by_role("button", name="Cancel the rollout").click()
    expect(page.get_by_text("cancelled by hand").first).to_be_visible()
    page.get_by_role("link", name="Rollouts", exact=True).click()
    expect(page.get_by_role("cell", name="cancelled", exact=True)).to_be_visible()


def test_a_replica_beyond_the_guards_is_refused_where_it_was_asked_for(
    visit: BrowserContext, world: World
) -> None:
    path = f"/v1/engines/{world.engine_id}/policy"
    plan = world.rest.get(path).json()["requested"]["plan"]
    guards = {"guards": {"max_gpus": plan["dp"] * plan["sp"] * plan["tp"]}}
    assert world.rest.patch(path, json=guards, headers={"If-Match": "*"}).is_success
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    page.get_by_role("button", name="Add a replica").click()
    expect(page.get_by_role("alert").filter(has_text="guards.max_gpus is")).to_be_visible()


def test_sliders_are_moved_by_keyboard_and_the_glance_follows(visit: BrowserContext) -> None:
    page = log_in(visit)
    go(page, "/what-if")
    expect(page.get_by_text("The SLA may be met")).to_be_visible()
    page.get_by_role("slider", name="Devices").press("ArrowLeft")
    expect(page.get_by_text("Devices: 4")).to_be_visible()
    expect(page.get_by_label("Plan")).to_have_value("tp=4")
    page.get_by_role("slider", name="SLA: p95 TPOT").press("Home")
    expect(page.get_by_text("The SLA is missed: TPOT")).to_be_visible()


def test_a_workload_shows_when_and_how_long_its_requests_are(
    visit: BrowserContext, world: World
) -> None:
    rows = "".join(f"{i / 2},{8 * (i % 9 + 1)},{i % 5 + 1}\n" for i in range(90))
    trace = f"arrival_s,input_tokens,output_tokens\n{rows}"
    assert world.rest.post("/v1/workloads?name=calm.csv", content=trace).is_success
    page = log_in(visit)
    page.get_by_role("link", name="Workloads").click()
    page.get_by_role("link", name="calm.csv").click()
    expect(page.get_by_role("heading", name="calm.csv")).to_be_visible()
    expect(page.get_by_text(f"{len(trace)} B", exact=True)).to_be_visible()
    expect(page.get_by_text("seconds from the first request, in stretches of 1 s")).to_be_visible()
    for drawn in ("requests per second over the time", "requests by input tokens"):
        expect(page.get_by_role("img", name=drawn)).to_be_visible()


def test_a_trace_is_chosen_in_the_browser_and_what_is_wrong_is_told_in_place(
    visit: BrowserContext, tmp_path: Path
) -> None:
    broken, whole = tmp_path / "broken.csv", tmp_path / "morning & noon.csv"
    broken.write_text("arrival_s,input_tokens,output_tokens\n0,8,4\n0.5,many,4\n")
    whole.write_text("arrival_s,input_tokens,output_tokens\n0,8,4\n0.5,9,4\n2,8,3\n")
    page = log_in(visit)
    go(page, "/workloads")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a file first")
    page.get_by_label("Trace file").set_input_files(broken)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("line 3")
    page.get_by_label("Trace file").set_input_files(whole)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("heading", name="morning & noon.csv")).to_be_visible()

    page.get_by_role("link", name="Tune for this load").click()
    expect(page.get_by_label("Workload")).to_have_value(re.compile("^wl_"))
    page.go_back()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Remove it").click()
    expect(page).to_have_url(re.compile("/workloads$"))
    expect(page.get_by_role("link", name="morning & noon.csv")).to_have_count(0)


def test_a_job_is_asked_for_again_as_it_was_and_removed(
    visit: BrowserContext, world: World
) -> None:
    body = {"model": "llama-3.1-8b", "hardware": "1xh200", "num_devices": 1, "trials": 1,
            "workload": "poisson:rate=4,input=64,output=8,seconds=5", "seed": 7,
            "sla": "p95_ttft_ms<=400", "options": {"capacity_table": True}}  # fmt: skip
    job_id = world.rest.post("/v1/tuning-jobs", json=body).json()["id"]
    page = log_in(visit)
    go(page, f"/jobs/{job_id}")
    expect(page.get_by_role("heading", name="Tuning llama-3.1-8b on 1xh200")).to_be_visible()
    page.get_by_role("link", name="Start one like it").click()
    for label, value in (("Seed", "7"), ("SLA", "p95_ttft_ms<=400"), ("Hardware", "1xh200")):
        expect(page.get_by_label(label)).to_have_value(value)
    expect(page.get_by_role("checkbox", name="Capacity table")).to_be_checked()
    go(page, f"/jobs/{job_id}")
    page.get_by_role("button", name="Remove").click(timeout=JOB_MS)
    page.get_by_role("button", name="Remove it").click()
    expect(page).to_have_url(re.compile("/jobs$"))
    assert world.rest.get(f"/v1/tuning-jobs/{job_id}").status_code == 404


def test_an_engine_is_taken_back_to_an_earlier_version(visit: BrowserContext, world: World) -> None:
    path = f"/v1/engines/{world.engine_id}/policy"
    version, plan = (world.rest.get(path).json()[name] for name in ("version", "requested"))
    wanted = {"caps": {"max_queue": (plan["caps"]["max_queue"] or 0) + 7}}
    assert world.rest.patch(path, json=wanted, headers={"If-Match": "*"}).is_success
    page = log_in(visit)
    go(page, f"/engines/{world.engine_id}")
    page.get_by_label("Earlier version").click()
    page.get_by_role("option", name=re.compile(f"^{version}: ")).click()
    page.get_by_role("button", name="Go back to it").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Go back to it").click()
    told = page.get_by_text(f"Version {version + 2} is asked for; the engine applies it")
    expect(told).to_be_visible()
    assert world.rest.get(path).json()["requested"]["caps"] == plan["caps"]


def test_a_server_that_runs_already_is_added_by_a_form(visit: BrowserContext, world: World) -> None:
    page = log_in(visit)
    page.get_by_role("link", name="Add an engine").click()
    page.get_by_label("Name").fill("south")
    page.get_by_label("Address").fill("http://127.0.0.1:9")
    page.get_by_label("Plan it runs").fill("sp=2")
    page.get_by_role("button", name="Observe it").click()
    expect(page.get_by_role("alert")).to_contain_text("vllm has no sequence parallelism")
    page.get_by_label("Plan it runs").fill("tp=2")
    page.get_by_label("SLA").fill("p95_ttft_ms<=400")
    page.get_by_role("button", name="Observe it").click()
    expect(page.get_by_role("heading", name="south")).to_be_visible()
    found = {one["name"]: one for one in world.rest.get("/v1/engines").json()}
    assert (found["south"]["system"], found["south"]["sla"]) == ("vllm", "p95_ttft_ms<=400")
    expect(page.get_by_text("All connection attempts failed")).to_have_count(1)
    # Of knobs it is offered what it has.
    expect(page.get_by_text("this service cannot restart it")).to_be_visible()
    expect(page.get_by_label("Shift threshold (tokens)")).to_have_count(0)
    expect(page.get_by_label("SLA", exact=True)).to_have_value("p95_ttft_ms<=400")
    assert world.rest.post(f"/v1/engines/{found['south']['id']}:deregister").is_success


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_fit_their_screen(browser: Browser, world: World, width: int, colours: str) -> None:
    names = {
        "fleet": "/",
        "engine": f"/engines/{world.engine_id}",
        "rollouts": "/rollouts",
        "jobs": "/jobs",
        "new-job": "/jobs/new",
        "workloads": "/workloads",
        "what-if": "/what-if",
        "new-engine": "/engines/new",
        "keys": "/keys",
        "audit": "/audit",
        "missing": "/jobs/job_none",
    }
    with browser.new_context(
        base_url=world.url, viewport={"width": width, "height": 900}, color_scheme=colours
    ) as context:
        page = log_in(context)
        for name, path in names.items():
            go(page, path)
            wide = "document.documentElement.scrollWidth - window.innerWidth"
            assert page.evaluate(wide) <= 0, name
            if (width, colours) in ((1440, "light"), (390, "dark")):
                take(page, f"{name}-{width}")


def test_the_keyboard_reaches_the_content(visit: BrowserContext) -> None:
    page = log_in(visit)
    go(page, "/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    engine = page.get_by_role("link", name="chat-east")
    for _ in range(3):  # browsers stop at what scrolls, too
        page.keyboard.press("Tab")
        if engine.evaluate("element => element === document.activeElement"):
            break
    expect(engine).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="chat-east")).to_be_visible()
