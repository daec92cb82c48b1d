"""``gearshift rollouts`` against a control plane, over real HTTP."""

from __future__ import annotations

import json

import httpx
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from api.clients.client import Client
from api.web.settings import ServiceSettings
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.api.worlds import engine_body

PATCH = '{"caps": {"max_num_seqs": 96}, "sla": "p95_ttft_ms<=500"}'


def _register(url: str) -> str:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=url, headers=headers) as http:
        return str(http.post("/v1/engines", json=engine_body()).json()["id"])


def test_a_rollout_is_started_listed_shown_and_cancelled_over_http(
    settings: ServiceSettings, database: Database
) -> None:
    del database  # its schema is what is needed
    runner = CliRunner(env={"GEARSHIFT_CONTROL_KEY": ADMIN})

    def run(*words: str) -> Result:
        return runner.invoke(create_app(), ["rollouts", *words, "--service", url])

    with running_service(settings) as url:
        engine_id = _register(url)
        begin = ("start", PATCH, "--engine", engine_id)
        no_sla = run("start", '{"caps": {"max_num_seqs": 96}}', "--engine", engine_id)
        assert (no_sla.exit_code, "add one to the patch" in no_sla.stderr) == (2, True)
        refused = run(*begin)
        assert (refused.exit_code, "name replay.hardware" in refused.stderr) == (2, True)
        assert "on a command line --hardware, --cost-model or --skip-replay" in refused.stderr
        done = run(*begin, "--skip-replay", "--slice-s", "10", "--json")
        assert done.exit_code == 0, done.output
        rollout = json.loads(done.stdout)
        assert (rollout["state"], rollout["limits"]["slice_s"]) == ("replaying", 10.0)
        listed = run("list", "--engine", engine_id).stdout
        assert rollout["id"] in listed
        with Client(url, ADMIN) as client:
            assert client.get_engine(engine_id).name in listed
        assert json.loads(run("list", "--json").stdout)["rollouts"][0]["id"] == rollout["id"]
        assert "replaying: gearshift rollouts start" in run("show", rollout["id"]).stdout
        assert "cancelled by hand" in run("cancel", rollout["id"]).stdout
        followed = run("show", rollout["id"], "--json")
        assert json.loads(followed.stdout)["code"] == "cancelled"
        wipe = run(*begin, "--skip-replay", "--reason", "calm\x1b[1A\x1b[2K")
        assert "calm\\x1b[1A" in wipe.stdout, "a reason steers no terminal that shows it"
        wrong = run("start", "{caps}", "--engine", engine_id)
        assert (wrong.exit_code, "neither a recommendation's id" in wrong.stderr) == (2, True)
