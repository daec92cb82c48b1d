"""``gearshift workload upload|list|delete`` against a control plane, over real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from api.cli.main import create_app
from api.web.settings import ServiceSettings
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import running_service


def test_a_trace_is_uploaded_listed_and_removed_over_http(
    settings: ServiceSettings, database: Database, tmp_path: Path
) -> None:
    del database  # its schema is what is needed
    trace = tmp_path / "calm.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n2,5,6\n")
    runner = CliRunner(env={"GEARSHIFT_CONTROL_KEY": ADMIN})

    def run(*words: str) -> Result:
        return runner.invoke(create_app(), ["workload", *words, "--service", url])

    with running_service(settings) as url:
        done = run("upload", str(trace), "--json")
        assert done.exit_code == 0, done.output
        workload = json.loads(done.stdout)
        assert (workload["name"], workload["rows"]) == ("calm.csv", 2)
        assert workload["id"] in run("list").stdout
        assert run("delete", workload["id"]).exit_code == 0
        assert json.loads(run("list", "--json").stdout) == {"workloads": []}
        trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\nsoon,5,6\n")
        wrong = run("upload", str(trace))
        assert (wrong.exit_code, "calm.csv: line 3: arrival_s 'soon'" in wrong.stderr) == (2, True)
