"""Who gets in, over real HTTP; what pages do in a browser is in test_browser.py."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from migrations.runner import upgrade
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.api.worlds import register
from tests.docs_pages import loaded_by

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with its dashboard and one engine, in a process that has torch loaded."""
    importlib.import_module("torch.distributed")
    folder: Path = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(data_dir=folder, admin_key=ADMIN, run_worker=False)
    database = Database(settings.effective_database_url)
    upgrade(database.engine)
    database.close()
    with running_service(settings) as url:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
            register(client, name="chat-east")
        yield url


@pytest.fixture
def visitor(url: str) -> Iterator[httpx.Client]:
    """A browser without a key."""
    with httpx.Client(base_url=url, headers=HTML) as client:
        yield client


@pytest.fixture
def guest(visitor: httpx.Client) -> httpx.Client:
    """A browser that has logged in."""
    assert visitor.post("/login", data={"key": ADMIN}).status_code == 303
    return visitor


def test_whoever_has_no_key_is_sent_to_the_login_and_back(visitor: httpx.Client) -> None:
    answer = visitor.get("/jobs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/jobs")
    form = visitor.get(answer.headers["location"])
    assert form.status_code == 200
    assert 'value="/jobs"' in form.text
    assert loaded_by(form.text) == {"data:,"}
    entered = visitor.post("/login", data={"key": ADMIN, "next": "/jobs"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/jobs")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(visitor: httpx.Client) -> None:
    cookie = visitor.post("/login", data={"key": ADMIN}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie  # plain HTTP would never get it back
    behind_tls = visitor.post("/login", data={"key": ADMIN}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in behind_tls.headers["set-cookie"].lower()


@pytest.mark.parametrize("key", ["", "gs_wrong", "x" * 100_000])
def test_a_wrong_key_is_told_and_gives_no_cookie(visitor: httpx.Client, key: str) -> None:
    answer = visitor.post("/login", data={"key": key})
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/v1/engines", "javascript:alert(1)"]
)
def test_the_login_leads_to_no_other_place(visitor: httpx.Client, target: str) -> None:
    assert visitor.post("/login", data={"key": ADMIN, "next": target}).headers["location"] == "/"


def test_the_fleet_names_its_engine_and_loads_only_its_own_files(guest: httpx.Client) -> None:
    page = guest.get("/")
    assert page.status_code == 200
    assert "chat-east" in page.text
    loaded = {address for address in loaded_by(page.text) if not address.startswith("#")}
    assert loaded
    assert all(address.startswith("/_nicegui/") for address in loaded if address != "/favicon.ico")
    assert "http" not in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_files_of_pages_need_the_key_too(visitor: httpx.Client, guest: httpx.Client) -> None:
    address = sorted(a for a in loaded_by(guest.get("/").text) if a.startswith("/_nicegui/"))[0]
    assert guest.get(address).status_code == 200
    with httpx.Client(base_url=visitor.base_url) as stranger:
        assert stranger.get(address).status_code == 401


def test_after_the_logout_the_pages_are_closed(guest: httpx.Client) -> None:
    assert guest.get("/").status_code == 200
    answer = guest.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert guest.get("/").status_code == 303


def test_the_cookie_does_not_open_the_api(guest: httpx.Client) -> None:
    answer = guest.get("/v1/engines")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


TRACE = "arrival_s,input_tokens,output_tokens\n0,8,4\n0.5,9,4\n2,8,3\n"


def test_a_trace_is_taken_from_own_pages_of_keys_that_may_only(
    url: str, visitor: httpx.Client, guest: httpx.Client
) -> None:
    own = {"Origin": url}
    sent = guest.post("/workloads?name=a.csv", content=TRACE, headers=own)
    assert sent.status_code == 201
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        assert client.get(f"/v1/workloads/{sent.json()['id']}").json()["rows"] == 3
        key = client.post("/v1/api-keys", json={"name": "guest", "scopes": ["read"]}).json()
    for headers in ({}, {"Origin": "http://evil.example"}):
        refused = guest.post("/workloads", content=TRACE, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "other_site")
    broken = guest.post("/workloads", content=f"{TRACE}3,many,1\n", headers=own)
    assert (broken.status_code, broken.json()["line"]) == (422, 5)
    unknown = guest.post("/workloads?form=excel", content=TRACE, headers=own)
    assert "form 'excel': known are" in unknown.json()["detail"]
    with httpx.Client(base_url=url) as stranger:
        asked = stranger.post("/workloads", content=TRACE, headers={**own, "Accept": "*/*"})
        assert asked.status_code == 401
        assert stranger.post("/login", data={"key": key["secret"]}).status_code == 303
        asked = stranger.post("/workloads", content=TRACE, headers=own)
        assert (asked.status_code, asked.json()["code"]) == (403, "missing_scope")


def test_what_the_api_says_to_other_paths_is_unchanged(url: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        assert client.get("/v1/nothing").headers["content-type"] == "application/problem+json"
        assert client.post("/healthz").status_code == 405
        assert client.get("/docs").status_code == 200
        assert "login" not in client.get("/openapi.json").text


def _upgrade(url: str, headers: dict[str, str]) -> int:
    """The status that a request for a WebSocket gets."""
    asked = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    with httpx.stream(
        "GET", f"{url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket", headers=asked
    ) as answer:
        return answer.status_code


def test_a_socket_opens_for_own_pages_with_a_key_only(url: str) -> None:
    cookie = {"Cookie": f"gearshift_key={ADMIN}"}
    assert _upgrade(url, {**cookie, "Origin": url}) == 101
    assert _upgrade(url, {"Origin": url}) == 403
    assert _upgrade(url, cookie) == 403
    assert _upgrade(url, {**cookie, "Origin": "http://evil.example"}) == 403
    assert _upgrade(url, {"Cookie": "gearshift_key=gs_wrong", "Origin": url}) == 403


def test_a_page_shows_names_of_engines_as_text(url: str, guest: httpx.Client) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        register(client, name="<script>alert(1)</script>")
    page = guest.get("/").text
    assert "alert(1)" in page
    assert not re.search(r"<script>\s*alert", page)


class _WithoutNiceGui(PathFinder):
    """Finds what is installed, but for NiceGUI."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname == "nicegui" else super().find_spec(fullname, path, target)


def test_without_its_libraries_the_service_says_how_to_get_them(
    settings: ServiceSettings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    finders = [_WithoutNiceGui if one is PathFinder else one for one in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.delitem(sys.modules, "nicegui")
    wanted = settings.model_copy(update={"dashboard": True})
    with TestClient(create_app(wanted)) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "pip install 'gearshift[dashboard]'" in page.text
        assert client.get("/jobs", headers=HTML).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_a_service_that_wants_no_pages_has_none(anonymous: TestClient) -> None:
    assert anonymous.get("/", headers=HTML).status_code == 401
    assert anonymous.get("/login").status_code == 401
