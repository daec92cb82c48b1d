"""Keys in a real browser: the page that makes, rotates and revokes them, and what they open."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.api.dashboard.browsing import NEEDS_CHROMIUM, World, go, log_in

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def test_a_key_is_made_shown_once_rotated_and_revoked_and_the_audit_tells_of_it(
    visit: BrowserContext, world: World
) -> None:
    page = log_in(visit)
    go(page, "/keys")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("alert")).to_contain_text("Give it a name")
    page.get_by_label("Name").fill("night shift")
    page.get_by_role("button", name="Make the key").click()
    secret = page.get_by_text(re.compile("^gs_[^.]+$"))
    expect(secret).to_be_visible()
    headers = {"Authorization": f"Bearer {secret.inner_text()}"}
    assert world.rest.get("/v1/engines", headers=headers).status_code == 200

    def choose_the_key() -> None:
        page.get_by_label("Key", exact=True).click()
        page.get_by_role("option", name=re.compile("night shift")).first.click()

    choose_the_key()
    page.get_by_role("button", name="Rotate ...").click()
    expect(page.get_by_role("dialog")).to_contain_text("The old one opens for 24 h more")
    page.get_by_role("button", name="Rotate it").click()
    expect(secret).to_have_count(2)
    newer = {"Authorization": f"Bearer {secret.nth(1).inner_text()}"}
    assert newer != headers
    for opens in (headers, newer):
        assert world.rest.get("/v1/engines", headers=opens).status_code == 200

    choose_the_key()
    page.get_by_role("button", name="Revoke ...").click()
    page.get_by_role("button", name="Revoke it").click()
    revoked = page.get_by_role("row").filter(has_text="night shift").filter(has_text="revoked")
    expect(revoked).to_have_count(1)
    found = [world.rest.get("/v1/engines", headers=h).status_code for h in (headers, newer)]
    assert sorted(found) == [200, 401]

    page.get_by_role("link", name="Audit").click()
    for action in ("key.rotate", "key.revoke"):
        expect(page.get_by_role("cell", name=action).first).to_be_visible()
    page.get_by_role("button", name="Check every entry").click()
    expect(page.get_by_text(re.compile("^Whole: [0-9,]+ entries"))).to_be_visible()


def test_a_key_that_may_only_read_is_offered_nothing_else(
    visit: BrowserContext, world: World
) -> None:
    _, secret = world.make_key("read")
    page = log_in(visit, secret)
    go(page, f"/engines/{world.engine_id}")
    expect(page.get_by_text("the policy can be read, not changed")).to_be_visible()
    expect(page.get_by_role("button", name="Show what would change")).to_have_count(0)
    go(page, "/jobs")
    expect(page.get_by_role("heading", name="Tuning jobs")).to_be_visible()
    expect(page.get_by_role("link", name="New tuning job")).to_have_count(0)
    go(page, "/jobs/new")
    expect(page.get_by_text("needs a key with scope 'tune'")).to_be_visible()
    go(page, "/workloads")
    expect(page.get_by_text("needs a key with scope 'tune'")).to_be_visible()
    expect(page.get_by_role("link", name="Keys")).to_have_count(0)
    for path in ("/keys", "/audit"):
        go(page, path)
        expect(page.get_by_text("needs a key with scope 'admin'")).to_be_visible()


def test_a_page_of_a_key_that_was_revoked_goes_to_the_login(
    visit: BrowserContext, world: World
) -> None:
    key_id, secret = world.make_key("read")
    page = log_in(visit, secret)
    assert world.rest.delete(f"/v1/api-keys/{key_id}").is_success
    expect(page.get_by_role("button", name="Log in")).to_be_visible()


def test_the_key_that_a_page_is_open_by_is_not_rotated_without_time_to_change_over(
    visit: BrowserContext, world: World
) -> None:
    key_id, secret = world.make_key("admin")
    page = log_in(visit, secret)
    go(page, "/keys")
    page.get_by_role("button", name="Rotate ...").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a key first")
    page.get_by_label("Key", exact=True).click()
    begins = world.key(key_id)["prefix"]
    page.get_by_role("option", name=f"guest ({begins}...)").click()
    for hours, told in (("0", "open by that very key"), ("", "from 0 to 720")):
        page.get_by_label("Old key stays valid, hours").fill(hours)
        page.get_by_role("button", name="Rotate ...").click()
        expect(page.get_by_role("alert")).to_contain_text(told)
    assert world.key(key_id)["expires_at"] is None
