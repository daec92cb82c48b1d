"""From an answer to a service: ``engine serve --from`` and ``apply``, over real HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli.main import create_app
from api.clients.calls import act
from api.clients.client import Client
from api.schemas.serving import RegisteredView
from api.web.settings import ServiceSettings
from engine.spec.settings import Settings
from store import Database
from tests.api.cli.conftest import Run
from tests.api.cli.served import ALONE, PACED, serving
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.api.worlds import CALM, add_recommendation, engine_body
from tuner.servers.process import free_port

LOAD = "poisson:rate=20,input=64,output=8,requests=20"
SLA = "p95_ttft_ms<=2000"


# The fastest plan needs both: a dry run refuses what the engine has no devices for.
TWO_DEVICES = ("--paced", "2xh200", "--dtype", "bfloat16", "--paced-start-s", 0, *ALONE)


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Reports of plan and tune, written by the commands, and the recommendation tune has kept."""

    plan: Path
    tune: Path
    recommendation_id: str

    @property
    def planned(self) -> dict[str, Any]:
        """What plan recommends."""
        return dict(json.loads(self.plan.read_text())["best"])

    @property
    def tuned(self) -> dict[str, Any]:
        """The settings tune recommends."""
        return dict(json.loads(self.tune.read_text())["recommendation"]["settings"])


@pytest.fixture(scope="module")
def kept(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What the commands have written once."""
    folder = tmp_path_factory.mktemp("answers")
    plan, tune = folder / "plan.json", folder / "tune.json"
    load = ("--hardware", "2xh200", "--dtype", "bf16", "--workload", LOAD, "--sla", SLA)
    asked = ("--model", str(tiny_dir), *load)
    app, runner = create_app(), CliRunner(env={"GEARSHIFT_DATA_DIR": str(folder / "data")})
    planned = runner.invoke(app, ["plan", *asked, "--jobs", "1", "--out", str(plan)])
    assert planned.exit_code == 0, planned.output
    tuned = runner.invoke(app, ["tune", *asked, "--trials", "2", "--out", str(tune)])
    assert tuned.exit_code == 0, tuned.output
    assert "engine serve --from" not in planned.stdout + tuned.stdout  # no such hardware here
    (word,) = [w for w in tuned.stdout.split() if w.startswith("rec_")]
    return Reports(plan=plan, tune=tune, recommendation_id=word)


@pytest.fixture
def reports(kept: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Copies of them, to be changed, and the database they are kept in."""
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(kept.plan.parent / "data"))
    plan, tune = (Path(shutil.copy(file, tmp_path)) for file in (kept.plan, kept.tune))
    return replace(kept, plan=plan, tune=tune)


def test_an_engine_is_served_from_every_kind_of_answer(reports: Reports) -> None:
    for words, settings in (
        ((reports.plan, "--choice", "fastest"), reports.planned["fastest"]["settings"]),
        ((reports.tune,), reports.tuned),
        ((reports.recommendation_id,), reports.tuned),
    ):
        with serving("--from", *words, "--paced", "2xh200", *ALONE) as served:
            policy = served.http.get("/v1/engine/policy").json()
            assert {key: policy[key] for key in settings} == settings
            assert served.ready["paced"] == "2xh200"


def test_the_command_line_wins_over_the_answer(reports: Reports) -> None:
    words = ("--from", reports.plan, "--paced", "2xh200", "-tp", 2)  # the cheapest by default
    with serving(*words, "--max-num-seqs", 16, *ALONE) as served:
        policy = served.http.get("/v1/engine/policy").json()
    assert policy["plan"]["tp"] == 2
    assert policy["caps"]["max_num_seqs"] == 16
    asked = reports.planned["cheapest"]["settings"]["caps"]["max_num_batched_tokens"]
    assert policy["caps"]["max_num_batched_tokens"] == asked


def test_a_report_is_applied_to_a_running_engine_and_a_dry_run_changes_nothing(
    run: Run, reports: Reports, tiny_dir: Path
) -> None:
    words = ("--max-num-seqs", 1024, "--max-num-batched-tokens", 16384, "--max-queue", 7)
    with serving("--model", tiny_dir, *TWO_DEVICES, *words) as served:
        url = served.ready["url"]
        before = served.http.get("/v1/engine/policy").json()
        dry = run("apply", reports.plan, "--engine", url, "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert "dry run: nothing was changed" in dry.stdout
        assert "caps.max_num_batched_tokens: 16384 -> " in dry.stdout
        assert served.http.get("/v1/engine/policy").json() == before

        done = run("apply", reports.plan, "--engine", f"{url}/v1".removeprefix("http://"))
        assert done.exit_code == 0, done.output
        assert "policy version 1" in done.stdout
        after = served.http.get("/v1/engine/policy").json()
        wanted = reports.planned["cheapest"]["settings"]
        assert (after["plan"], after["shift"]) == (wanted["plan"], wanted["shift"])
        tokens = wanted["caps"]["max_num_batched_tokens"]
        assert after["caps"]["max_num_batched_tokens"] == tokens
        assert after["caps"]["max_queue"] == 7  # the operator's

        again = run("apply", reports.plan, "--engine", url)
        assert "nothing to change" in again.stdout
        fastest = run("apply", reports.plan, "--engine", url, "--choice", "fastest", "--dry-run")
        assert "  plan.dp: 1 -> 2 (drain)\n" in fastest.stdout
        assert "  way: add, at most 2 devices at once" in fastest.stdout
        told = json.loads(run("apply", reports.recommendation_id, "--engine", url, "--json").stdout)
        assert told["engine"] == url


def test_caps_that_an_engine_was_not_started_for_are_refused_with_the_way_out(
    run: Run, tiny_dir: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(reports.plan.read_text())
    document["best"]["cheapest"]["settings"]["caps"]["max_num_seqs"] = 100_000
    reports.plan.write_text(json.dumps(document))
    with serving("--model", tiny_dir, *PACED, *ALONE, "--api-key", "k") as served:
        url = served.ready["url"]
        locked = run("apply", reports.plan, "--engine", url)
        monkeypatch.setenv("GEARSHIFT_ENGINE_KEY", "k")
        refused = run("apply", reports.plan, "--engine", url)
    assert (refused.exit_code, locked.exit_code) == (2, 2)
    assert "restart it with a wider envelope" in refused.stderr
    assert "401" in locked.stderr
    assert refused.stderr.count("\n") == locked.stderr.count("\n") == 1


def test_a_recommendation_is_applied_through_the_control_plane(
    run: Run, settings: ServiceSettings, database: Database
) -> None:
    recommendation_id = add_recommendation(database)
    with running_service(settings) as url, Client(url, ADMIN) as client:
        body = engine_body(policy=Settings().to_json())
        engine_id = client.send(act("/v1/engines", RegisteredView, body)).id
        words = ("apply", recommendation_id, "--service", url, "--engine", engine_id)
        keyed = (*words, "--service-key", ADMIN)
        dry = run(*keyed, "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert "  plan: tp=1 -> sp=2,shift (reshape)\n" in dry.stdout
        assert "dry run: nothing was changed" in dry.stdout
        assert client.get_engine(engine_id).applied_version == 1
        done = run(*keyed, "--json")
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        assert answer["settings"] == str(CALM)
        assert answer["version"] == 2
        assert "GEARSHIFT_CONTROL_KEY" in run(*words).stderr
        assert "401" in run(*words, "--service-key", "wrong").stderr
        gone = run("apply", "rec_none", *keyed[2:])
        assert (gone.exit_code, "404" in gone.stderr) == (2, True)


def test_an_engine_is_served_from_a_recommendation_at_a_control_plane(
    tiny_dir: Path,
    settings: ServiceSettings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", ADMIN)
    recommendation_id = add_recommendation(database)
    with running_service(settings) as url:
        source = f"{url}/v1/recommendations/{recommendation_id}"
        words = ("--from", source, "--model", tiny_dir, "--paced", "8xh200", "--dtype", "bf16")
        with serving(*words, *ALONE) as served:
            policy = served.http.get("/v1/engine/policy").json()
    assert policy["caps"] == CALM.to_json()["caps"]


def test_every_kind_of_answer_is_written_as_a_command_of_another_system(
    run: Run, reports: Reports, tmp_path: Path
) -> None:
    for words in (
        (reports.plan,),
        (reports.plan, "--choice", "fastest"),
        (reports.tune,),
        (reports.recommendation_id,),
    ):
        done = run("export", *words, "--format", "vllm")
        assert done.exit_code == 0, done.output
        comment, *_, command = done.stdout.splitlines()
        assert comment == "# vllm >=0.10,<0.31"
        assert command.startswith("vllm serve ")
    told = json.loads(run("export", reports.plan, "--format", "trtllm", "--json").stdout)
    assert told["config"]["is_needed"]

    stub = tmp_path / "trtllm-serve"
    stub.write_text('#!/bin/sh\necho "$@"; cat trtllm.yml\n')
    stub.chmod(0o755)
    script = run("export", reports.plan, "--format", "trtllm").stdout
    pasted = subprocess.run(
        ["sh", "-ec", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "--tp_size 1 " in pasted.stdout
    assert pasted.stdout.endswith(told["config"]["text"])


def test_what_cannot_be_written_as_a_command_says_why(run: Run, reports: Reports) -> None:
    assert "did you mean 'vllm'" in run("export", reports.plan, "--format", "vlm").stderr
    fastest = run("export", reports.tune, "--choice", "fastest", "--format", "vllm")
    assert (fastest.exit_code, "it has no commands" in fastest.stderr) == (2, True)
    document = json.loads(reports.plan.read_text())
    document["best"]["cheapest"]["launch"] = [{"system": "vllm", "command": 5}]
    reports.plan.write_text(json.dumps(document))
    assert "not as plan or tune" in run("export", reports.plan, "--format", "vllm").stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "known are plan/v2 (plan --out) and tuning-report/v2 (tune --out)"),
        ('{"schema": "simulation/v1"}', "its schema is 'simulation/v1'"),
        ('{"schema": "plan/v2"}', "not as plan or tune writes it"),
        ('{"schema": "tuning-report/v2", "recommendation": null, "alternatives": {}, "spec": {}}',
         "nothing is recommended there"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_answer_is_one_line(
    run: Run, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    for words in (("engine", "serve", "--from", file), ("apply", file, "--engine", "localhost:9")):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_this_machine_cannot_serve_says_what_to_do(run: Run, reports: Reports) -> None:
    done = run("engine", "serve", "--from", reports.plan)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "rehearse with --paced 2xh200" in done.stderr
    wrong = run("engine", "serve", "--from", reports.plan, "--choice", "fastes")
    assert "did you mean 'fastest'" in wrong.stderr
    alone = run("engine", "serve", "--choice", "fastest")
    assert "--choice is of a report" in alone.stderr
    document = json.loads(reports.plan.read_text())
    document["dtype"] = "fp8"
    reports.plan.write_text(json.dumps(document))
    assert "do not compute in fp8" in run("engine", "serve", "--from", reports.plan).stderr
    document["model"]["name"] = "llama-3.1-70b"
    reports.plan.write_text(json.dumps(document))
    assert "with --model DIR" in run("engine", "serve", "--from", reports.plan).stderr


def test_an_address_of_nothing_is_one_line(run: Run, reports: Reports) -> None:
    for words, message in (
        (("--engine", f"http://127.0.0.1:{free_port()}"), "no answer"),
        (("--engine", "ftp://x"), "--engine 'ftp://x'"),
        (("--engine", "eng_1", "--service", "nope:x:y"), "--service"),
        (("--engine", "eng_1", "--service", "http://127.0.0.1:9"), "by its id: rec_"),
    ):
        done = run("apply", reports.plan, *words)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
