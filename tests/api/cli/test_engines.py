"""``gearshift engines``: the how-to's own commands, over real HTTP, against a server as vLLM."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from api.web.settings import ServiceSettings
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import (
    running_service,
)
from tests.api.observed.test_watcher import ask
from tests.api.observed.worlds import capacity_table
from tests.rooms import ROOT
from tests.tuner.servers.test_target import STAND_IN, WAIT_S
from tests.waiting import wait_until
from tuner.servers.process import ServerProcess, free_port

PAGE = (ROOT / "docs" / "how-to" / "observe-a-vllm-server.md").read_text()
ADDRESS = "http://10.0.0.5:8000"
BLOCK = re.compile(r"^ {8}(gearshift (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)


def commands() -> list[list[str]]:
    """The page's commands in order, without the word ``gearshift``."""
    return [shlex.split(text.replace("\\\n", " "))[1:] for text in BLOCK.findall(PAGE)]


class Operator:
    """Types commands of the page in a folder, about a server that is at ``url``."""

    def __init__(self, folder: Path, service: str, url: str) -> None:
        self.folder, self.url, self._service = folder, url, service
        self._runner = CliRunner(env={"GEARSHIFT_CONTROL_KEY": ADMIN})

    def types(self, words: list[str], *more: str) -> Result:
        """The command's end; files are those of the folder."""
        there = [self._here(word) for word in words]
        service = ["--service", self._service] if words[0] == "engines" else []
        done = self._runner.invoke(create_app(), [*there, *service, *more])
        assert done.exit_code == 0, (words, done.output)
        return done

    def told(self, words: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.types(words, "--json").stdout)
        return found

    def _here(self, word: str) -> str:
        if word == ADDRESS:
            return self.url
        return str(self.folder / word) if word == "plan.json" else word


@pytest.fixture
def operator(settings: ServiceSettings, database: Database, tmp_path: Path) -> Iterator[Operator]:
    del database  # its schema is what is needed
    settings = settings.model_copy(
        update={"observe_interval_s": 0.2, "observe_timeout_s": WAIT_S, "control_window_s": 600.0}
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, str(STAND_IN), "--model", "m", "--port", str(port)]
    with (
        ServerProcess(words, grace_s=1.0) as server,
        running_service(settings) as service,
    ):
        server.wait_healthy(f"{url}/health", timeout_s=WAIT_S)
        yield Operator(tmp_path, service, url)


def follow(operator: Operator, *, is_planned: bool) -> None:
    """The page from its first command to its last."""
    observe, show, plan, bind, advise, kubernetes, compose, forget = commands()
    assert "is observed at" in operator.types(observe).stdout
    wait_until(lambda: operator.told(show)["sight"] == "seen")
    ask(operator.url, 8)
    wait_until(lambda: operator.told(show)["mean_output_tokens"] == 4.0)
    text = operator.types(show).stdout
    assert "vllm at" in text
    assert "attainment 1.000" in text
    if is_planned:
        operator.types(plan)
    else:
        document = {"capacity_table": capacity_table()}
        (operator.folder / "plan.json").write_text(json.dumps(document))
    assert "entries" in operator.types(bind).stdout
    told = operator.told(advise)
    # The load is seen a little otherwise at each look, so the entry may be another one.
    command = "vllm serve /models/llama-3.1-8b --tensor-parallel-size "
    assert told["launch"]["command"].startswith(command)
    assert command in operator.types(advise).stdout
    assert yaml.safe_load(operator.types(kubernetes).stdout)["kind"] == "Deployment"
    assert list(yaml.safe_load(operator.types(compose).stdout)["services"]) == ["chat"]
    assert "observed no more" in operator.types(forget).stdout


def test_the_how_to_can_be_followed(operator: Operator) -> None:
    follow(operator, is_planned=False)


@pytest.mark.slow
def test_the_how_to_can_be_followed_with_a_plan_of_ones_own(operator: Operator) -> None:
    follow(operator, is_planned=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "no JSON"), ("[]", "has no capacity table"),
     ('{"capacity_table": null}', "has no capacity table")],
)  # fmt: skip
def test_a_file_without_a_table_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "table.json"
    if text is not None:
        file.write_text(text)
    words = ["engines", "bind", "eng_1", str(file), "--service-key", "k"]
    done = CliRunner().invoke(create_app(), words)
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
