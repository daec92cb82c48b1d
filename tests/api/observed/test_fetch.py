"""Pages are fetched from addresses that may be called, and from no others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.observed.fetch import FetchError, FetchLimits, fetch
from api.web.addresses import read_networks
from store.models import Sight
from tests.api.observed.pages import Pages, send, serving


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with serving() as pages:
        yield pages


def limits(networks: str = "") -> FetchLimits:
    return FetchLimits(timeout_s=5.0, max_bytes=1000, networks=read_networks(networks))


def get(url: str, networks: str = "") -> str:
    return asyncio.run(fetch(url, token=None, limits=limits(networks)))


def test_a_page_comes_whole(pages: Pages) -> None:
    pages.answer = lambda handler: send(handler, "x" * 1000)
    assert get(f"{pages.url}/metrics", "127.0.0.0/8") == "x" * 1000


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_outside_the_networks_nothing_is_called(pages: Pages, host: str) -> None:
    pages.asked.clear()
    with pytest.raises(FetchError, match="outside GEARSHIFT_OBSERVE_NETWORKS") as caught:
        get(pages.url.replace("127.0.0.1", host), "10.0.0.0/8")
    assert caught.value.sight is Sight.FORBIDDEN_ADDRESS
    assert pages.asked == []


def test_a_name_that_leads_to_secrets_of_a_cloud_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it leads to a harmless address besides."""

    async def look_up(*_: Any, **__: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", 80)), (*kind, ("169.254.169.254", 80))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    with pytest.raises(FetchError, match="link-local") as caught:
        get("http://metadata.example/metrics")
    assert caught.value.sight is Sight.FORBIDDEN_ADDRESS


def test_a_name_that_leads_nowhere_is_unreachable() -> None:
    with pytest.raises(FetchError) as caught:
        get("http://nowhere.invalid/metrics")
    assert caught.value.sight is Sight.UNREACHABLE


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://user:secret@host",
        "ftp://host",
        "http://[::]:8000",
        "http://10.0.0.1:8000/metrics",
        "http://10.0.0.1:8000?key=secret",
    ],
)
def test_an_address_that_must_not_be_called_is_not_observed(client: TestClient, url: str) -> None:
    body = {"name": "chat", "system": "vllm", "url": url, "plan": "tp=1"}
    answer = client.post("/v1/engines:observe", json=body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/url"]
    assert "secret" not in answer.text


@pytest.mark.parametrize("model", ["--config=/tmp/x.yaml", "-h", " --enable-lora"])
def test_a_model_is_no_option_of_the_command_that_starts_its_server(
    client: TestClient, model: str
) -> None:
    body = {"name": "chat", "system": "vllm", "url": "http://10.0.0.1:8000", "plan": "tp=1"}
    answer = client.post("/v1/engines:observe", json={**body, "model": model})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/model"]
