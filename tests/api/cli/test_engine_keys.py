"""The keys of `gearshift engine serve`: taken from where nobody else can read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api.clients.client import Client
from api.web.settings import ServiceSettings
from store import Database
from tests.api.cli.conftest import Run
from tests.api.cli.served import ALONE, PACED, serving
from tests.api.conftest import ADMIN
from tests.api.live import (
    running_service,
)
from tests.waiting import wait_until


@pytest.fixture
def service(settings: ServiceSettings, database: Database) -> Iterator[str]:
    del database  # its schema is what is needed
    with running_service(settings) as url:
        yield url


def _wait_until_joined(url: str) -> None:
    with Client(url, ADMIN) as client:
        wait_until(client.list_engines)


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_control_key_need_not_stand_in_any_arguments(
    service: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    words: tuple[object, ...] = ("--model", tiny_dir, *PACED, "--control", service)
    if way == "variable":
        monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", ADMIN)
    else:
        (tmp_path / "key").write_text(f"{ADMIN}\n")
        words = (*words, "--control-key-file", tmp_path / "key")
    with serving(*words) as served:
        _wait_until_joined(service)
        engine = psutil.Process(served.process.pid)
        for process in (engine, *engine.children(recursive=True)):
            assert ADMIN not in " ".join(process.cmdline())
        assert ADMIN not in served.front.environ().values()


def test_keys_in_arguments_are_warned_about(service: str, tiny_dir: Path) -> None:
    words = ("--model", tiny_dir, *PACED, *ALONE, "--api-key", "k", "--control", service)
    with serving(*words, "--control-key", ADMIN) as served:
        _wait_until_joined(service)
        assert served.process.stderr is not None
        served.process.terminate()
        said = served.process.stderr.read()
    for option, variable in (("--control-key", "CONTROL_KEY"), ("--api-key", "ENGINE_KEY")):
        assert f"warning: {option} shows in the list of processes" in said
        assert f"give the key by GEARSHIFT_{variable}" in said


@pytest.mark.parametrize(("text", "fault"), [("\n", "is empty"), (None, "No such file")])
def test_a_key_file_without_a_key_is_a_mistake(
    run: Run, tiny_dir: Path, tmp_path: Path, text: str | None, fault: str
) -> None:
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
    done = run("engine", "serve", "--model", tiny_dir, "--control-key-file", path)
    assert done.exit_code == 2
    assert f"--control-key-file {path}" in done.stderr
    assert fault in done.stderr


def test_beyond_this_machine_the_knobs_are_closed_without_a_key(tiny_dir: Path) -> None:
    words = ("--model", tiny_dir, *PACED, "--host", "0.0.0.0", "--served-model-name", "tiny")
    with serving(*words, *ALONE) as served:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        assert served.http.post("/v1/completions", json=body).status_code == 200
        assert served.http.get("/v1/engine/policy").status_code == 403
        assert served.process.stderr is not None
        served.process.terminate()
        said = served.process.stderr.read()
    assert "warning: anyone may use the model on 0.0.0.0, and nobody its knobs" in said
    assert "start it with a key in GEARSHIFT_KNOB_KEY" in said
