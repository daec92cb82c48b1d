"""A server is restarted by its operator's hook or by the service itself, wholly or not at all."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.control.controller import Controller
from api.documents.known_servers import ServersFileError, read_known_servers
from api.observed.hook import find_hook, run_hook
from api.observed.restarter import Restarter
from api.observed.watcher import Watcher
from api.web.settings import ServiceSettings
from store import Database
from tests.api.observed.pages import Pages, page, send, serving
from tests.api.observed.worlds import bind, observe, see, settings_of
from tests.api.worlds import context_of
from tests.processes import wait_gone
from tests.tuner.servers.test_target import STAND_IN
from tuner.servers.process import free_port

Json = dict[str, Any]
# Notes what it was told, and ends as the file beside it says for this number of devices.
HOOK = """#!/bin/sh
cd {folder}
told=$(cat)
printf '%s\\n' "$told" >> told
devices=$(printf '%s' "$told" | sed 's/.*"num_devices": \\([0-9]*\\).*/\\1/')
echo "looked after $devices devices"
exit "$(cat "code-$devices" || echo 0)"
"""


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    """A server that says that it is well, whatever it is asked."""
    with serving() as pages:
        pages.answer = lambda handler: send(handler, page(finished=5))
        yield pages


class Hooked:
    """A service whose file of servers names a hook for the engine ``chat``."""

    def __init__(self, settings: ServiceSettings, folder: Path, url: str) -> None:
        self._folder = folder
        root = folder / "hooks"
        root.mkdir()
        self.hook = root / "restart"
        self.hook.write_text(HOOK.format(folder=folder))
        self.hook.chmod(0o755)
        file = folder / "servers.yml"
        file.write_text(f"chat:\n  url: {url}\n  hook: restart\n  away_s: 0\n  timeout_s: 60\n")
        settings.servers_file, settings.hook_root = file, root

    def ends(self, code: int, *, for_devices: int) -> None:
        """With this exit code, where it is asked for so many devices; else it ends well."""
        (self._folder / f"code-{for_devices}").write_text(str(code))

    @property
    def told(self) -> list[Json]:
        file = self._folder / "told"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def hooked(settings: ServiceSettings, tmp_path: Path, pages: Pages) -> Hooked:
    return Hooked(settings, tmp_path, pages.url)


@pytest.fixture
def restarter(client: TestClient) -> Iterator[Restarter]:
    restarter = Restarter(context_of(client))
    yield restarter
    restarter.stop()


@pytest.fixture
def engine_id(client: TestClient, hooked: Hooked, pages: Pages) -> str:
    """An observed engine that the service can restart."""
    engine_id = observe(client, url=pages.url)
    Watcher(context_of(client)).tick()
    return engine_id


def ask_for(client: TestClient, engine_id: str, tp: int) -> None:
    url = f"/v1/engines/{engine_id}/policy"
    tag = client.get(url).headers["etag"]
    answer = client.patch(url, json={"plan": {"tp": tp}}, headers={"if-match": tag})
    assert answer.status_code == 200, answer.text
    assert answer.json()["changes"][0]["class"] == "restart"


def policy(client: TestClient, engine_id: str) -> Json:
    return dict(client.get(f"/v1/engines/{engine_id}/policy").json())


def restarts(client: TestClient, engine_id: str) -> Json:
    found = client.get(f"/v1/engines/{engine_id}/observation").json()
    return dict(found["restarts"])


def test_a_change_is_made_by_the_hook_and_noted_as_applied(
    client: TestClient, hooked: Hooked, restarter: Restarter, engine_id: str
) -> None:
    ask_for(client, engine_id, 2)
    restarter.tick()
    restarter.tick()
    (told,) = hooked.told
    assert told["engine"]["name"] == "chat"
    assert (told["from"], told["to"]) == (settings_of(1).to_json(), settings_of(2).to_json())
    assert (told["num_devices"], told["is_restore"]) == (2, False)
    assert told["command"][:3] == ["vllm", "serve", "/m"]
    assert "kind: Deployment" in told["kubernetes"]
    now = policy(client, engine_id)
    assert (now["ack_state"], now["effective"]) == ("applied", settings_of(2).to_json())
    assert restarts(client, engine_id)["message"] == "done"


def test_a_server_whose_row_is_broken_keeps_no_other_from_its_change(
    client: TestClient, hooked: Hooked, restarter: Restarter, pages: Pages, database: Database
) -> None:
    broken, engine_id = observe(client, name="broken"), observe(client, url=pages.url)
    Watcher(context_of(client)).tick()
    with database.begin() as uow:
        uow.engines.get(broken).desired_version = 99
    ask_for(client, engine_id, 2)
    restarter.tick()
    assert len(hooked.told) == 1
    assert policy(client, engine_id)["ack_state"] == "applied"


def test_a_hook_that_fails_is_undone_and_the_version_refused(
    client: TestClient, hooked: Hooked, restarter: Restarter, engine_id: str
) -> None:
    hooked.ends(3, for_devices=2)
    ask_for(client, engine_id, 2)
    restarter.tick()
    assert [(t["num_devices"], t["is_restore"]) for t in hooked.told] == [(2, False), (1, True)]
    now = policy(client, engine_id)
    assert (now["version"], now["effective"]) == (3, settings_of(1).to_json())
    refused = client.get(f"/v1/engines/{engine_id}/policy/versions").json()[1]
    assert refused["ack_state"] == "refused"
    assert "exit code 3" in refused["ack_message"]
    assert "looked after 2 devices" in refused["ack_message"]
    assert "what ran before runs again" in refused["ack_message"]
    found = restarts(client, engine_id)
    assert (found["failures"], found["retry_at"] is not None) == (1, True)
    (decision,) = client.get("/v1/decisions", params={"engine_id": engine_id}).json()
    assert (decision["action"], decision["reason"]) == ("raise_condition", "restart_failed")


def test_a_hook_that_says_not_now_is_not_undone(
    client: TestClient, hooked: Hooked, restarter: Restarter, engine_id: str
) -> None:
    hooked.ends(os.EX_TEMPFAIL, for_devices=2)
    ask_for(client, engine_id, 2)
    restarter.tick()
    assert [told["num_devices"] for told in hooked.told] == [2]
    assert policy(client, engine_id)["effective"] == settings_of(1).to_json()


def test_a_change_that_nobody_can_make_any_more_is_refused(
    client: TestClient, hooked: Hooked, restarter: Restarter, engine_id: str,
    settings: ServiceSettings,
) -> None:  # fmt: skip
    ask_for(client, engine_id, 2)
    assert settings.servers_file is not None
    settings.servers_file.write_text("{}")
    restarter.tick()
    assert hooked.told == []
    refused = client.get(f"/v1/engines/{engine_id}/policy/versions").json()[1]
    assert refused["ack_state"] == "refused"
    assert "nothing restarts the server any more" in refused["ack_message"]
    assert policy(client, engine_id)["effective"] == settings_of(1).to_json()


def test_the_slow_loop_restarts_and_waits_after_a_failure(
    client: TestClient, hooked: Hooked, restarter: Restarter, engine_id: str, database: Database
) -> None:
    hooked.ends(1, for_devices=2)
    bind(client, engine_id)
    controller = Controller(context_of(client))
    see(database, engine_id, 15.0)
    controller.tick()
    restarter.tick()
    assert [told["num_devices"] for told in hooked.told] == [2, 1]
    with database.begin() as uow:  # as if the guard's interval and the loop's had passed
        engine = uow.engines.get(engine_id)
        memory = dict(engine.capacity_memory or {})
        engine.capacity_memory = memory | {"changes_s": [], "decided_s": None}
    see(database, engine_id, 15.0)
    controller.tick()
    newest = client.get("/v1/decisions", params={"engine_id": engine_id}).json()[0]
    assert (newest["action"], newest["reason"]) == ("advise", "capacity_load_up")
    restarter.tick()
    assert len(hooked.told) == 2
    with database.begin() as uow:  # and now the wait after the failure, too
        server = uow.servers.get(engine_id)
        server.restart = dict(server.restart or {}) | {"retry_at_s": time.time() - 1}
        engine = uow.engines.get(engine_id)
        engine.capacity_memory = dict(engine.capacity_memory or {}) | {"decided_s": None}
    hooked.ends(0, for_devices=2)
    see(database, engine_id, 15.0)
    controller.tick()
    restarter.tick()
    assert hooked.told[-1]["num_devices"] == 2
    assert "load_up: " in hooked.told[-1]["reason"]
    assert policy(client, engine_id)["effective"] == settings_of(2).to_json()
    assert restarts(client, engine_id)["failures"] == 0


@pytest.mark.slow
def test_a_server_of_a_command_runs_with_what_is_asked_and_ends_with_the_service(
    client: TestClient, settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("STAND_IN_MOST_SEQS", "64")
    url = f"http://127.0.0.1:{free_port()}"
    settings.servers_file = tmp_path / "servers.yml"
    settings.servers_file.write_text(
        f"chat:\n  url: {url}\n  command: {sys.executable} {STAND_IN}\n  timeout_s: 60\n"
    )
    context = context_of(client)
    engine_id, restarter = observe(client, url=url), Restarter(context)
    Watcher(context).tick()
    restarter.tick()
    assert httpx.get(f"{url}/health").status_code == 200
    patch = {"caps": {"max_num_seqs": 65}}  # it dies at its start with so many
    tag = client.get(f"/v1/engines/{engine_id}/policy").headers["etag"]
    client.patch(f"/v1/engines/{engine_id}/policy", json=patch, headers={"if-match": tag})
    restarter.tick()
    refused = client.get(f"/v1/engines/{engine_id}/policy/versions").json()[1]
    assert "no memory for 65 sequences" in refused["ack_message"]
    assert "what ran before runs again" in refused["ack_message"]
    assert httpx.get(f"{url}/health").status_code == 200
    restarter.stop()
    wait_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def program(folder: Path, text: str) -> Path:
    path = folder / "hook"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_hook_that_never_ends_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)",
    )

    def has_begun() -> bool:
        return (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text())

    found = run_hook(path, {}, timeout_s=60.0, should_stop=has_begun)
    assert (found.code, found.is_done) == (None, False)
    wait_gone([int((tmp_path / "pid").read_text())])


def test_of_what_a_hook_says_only_the_end_is_kept(tmp_path: Path) -> None:
    path = program(tmp_path, "print('x' * 1_000_000)\nprint('last words')\nraise SystemExit(4)")
    found = run_hook(path, {"long": "y" * 100_000}, timeout_s=60.0, should_stop=lambda: False)
    assert found.code == 4
    assert len(found.said) <= 2000
    assert str(found).endswith(": last words")


def test_a_hook_learns_nothing_of_the_service_but_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATABASE_URL", "postgresql://u:secret@h/d")
    path = program(tmp_path, "import os\nprint([k for k in os.environ if 'GEARSHIFT' in k])")
    assert run_hook(path, {}, timeout_s=60.0, should_stop=lambda: False).said == "[]"


def _open_to_all(folder: Path) -> None:
    (folder / "hook").chmod(0o777)


def _no_program(folder: Path) -> None:
    (folder / "hook").chmod(0o644)


def _leads_out(folder: Path) -> None:
    (folder / "hook").unlink()
    (folder / "hook").symlink_to(sys.executable)


def _gone(folder: Path) -> None:
    (folder / "hook").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_open_to_all, "everybody may write it"),
        (_no_program, "is no program"),
        (_leads_out, "leads out of the folder"),
        (_gone, "No such file"),
    ],
)
def test_a_hook_that_anybody_could_have_put_there_is_not_run(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    program(tmp_path, "")
    change(tmp_path)
    with pytest.raises(ServersFileError, match=message):
        find_hook(tmp_path, "hook")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat: {url: 'ftp://x'}", "no address"),
        ("chat: {url: 'http://x', hook: ../../bin/sh}", "name of a program"),
        ("chat: {url: 'http://x', hook: a, command: b}", "not both"),
        ("chat: {url: 'http://x', command: 'vllm serve --port 1'}", "which the policy chooses"),
        ("chat: {url: 'http://x', restart: now}", "unknown field"),
        ("chat: {url: 'http://x', timeout_s: .inf}", "timeout_s"),
        ("[1, 2]", "Expected `object"),
        ("chat: {", "servers.yml"),
    ],
)
def test_a_file_of_servers_that_cannot_be_meant_is_told(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "servers.yml"
    file.write_text(text)
    with pytest.raises(ServersFileError, match=message):
        read_known_servers(file)
