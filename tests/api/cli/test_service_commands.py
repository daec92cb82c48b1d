"""Commands about what a control plane keeps: jobs, policies, decisions and more, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli.main import create_app
from api.clients.calls import act
from api.clients.client import Client
from api.schemas.examples.engines import KNOB
from api.schemas.examples.tuning import JOB_BODY, TRIAL
from api.schemas.serving import RegisteredView
from api.web.settings import ServiceSettings
from store import Database
from store.models import DecisionRow
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.api.observed.worlds import RATE_OF_ONE_RPS, capacity_table
from tests.api.worlds import CALM, add_recommendation, engine_body

Json = dict[str, Any]
TABLES = ("list", "trials", "pareto", "importance", "knobs")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Types commands about a service that runs."""

    url: str

    def types(self, *words: object) -> Result:
        """How a command ends."""
        runner = CliRunner(env={"GEARSHIFT_CONTROL_KEY": ADMIN, "COLUMNS": "80"})
        return runner.invoke(create_app(), [*map(str, words), "--service", self.url])

    def reads(self, *words: object) -> str:
        """What a command that succeeds prints; no table is wider than a terminal."""
        done = self.types(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
        if words[1] in TABLES:
            assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
        return done.stdout

    def told(self, *words: object) -> Json:
        """The JSON answer of a command that succeeds."""
        found: Json = json.loads(self.types(*words, "--json").stdout)
        return found


@pytest.fixture
def operator(settings: ServiceSettings) -> Iterator[Operator]:
    with running_service(settings) as url:
        yield Operator(url=url)


@pytest.fixture
def engine_id(operator: Operator) -> str:
    """An engine called chat."""
    with Client(operator.url, ADMIN) as client:
        return client.send(act("/v1/engines", RegisteredView, engine_body(capabilities=[KNOB]))).id


def test_a_job_is_queued_looked_at_followed_and_removed(operator: Operator) -> None:
    words = ("--model", "llama-3.1-8b", "--hardware", "2xh200", "--sla", "p95_ttft_ms<=500")
    load = ("--workload", "poisson:rate=4,input=64,output=8,seconds=5")
    missing = operator.types("jobs", "create", *words)
    assert (missing.exit_code, "--workload: needed" in missing.stderr) == (2, True)
    table = ("--capacity-table", "--capacity-seconds", 5, "--budget", "device_minutes=3")
    told = operator.types("jobs", "create", *words, *load)
    assert f" --service {operator.url}\n" in told.stderr, "the next command asks the same service"
    operator.reads("jobs", "cancel", told.stdout.partition(":")[0])
    job = operator.told("jobs", "create", *words, *load, "--objective", "cost", *table)
    assert (job["state"], job["spec"]["options"]["objective"]) == ("queued", "cost")
    options = ("capacity_table", "capacity_seconds", "budget")
    assert [job["spec"]["options"][name] for name in options] == [True, 5.0, "device_minutes=3"]
    assert job["id"] in operator.reads("jobs", "list", "--state", "queued")
    assert operator.told("jobs", "list", "--state", "failed") == {"jobs": []}
    assert "0/12 trials" in operator.reads("jobs", "show", job["id"])
    for word, answer in (("trials", "trials"), ("pareto", "front"), ("importance", "knobs")):
        operator.reads("jobs", word, job["id"])
        assert operator.told("jobs", word, job["id"])[answer] == []
    assert "cancelled before it began" in operator.reads("jobs", "cancel", job["id"])
    followed = operator.types("jobs", "follow", job["id"])
    assert (followed.exit_code, "cancelled" in followed.stdout) == (3, True)
    assert "state: waiting for a worker" in followed.stderr
    assert operator.told("jobs", "delete", job["id"]) == {"removed": job["id"]}


def test_what_a_finished_job_found_is_told_in_tables(
    operator: Operator, database: Database
) -> None:
    job_id = _finished_job(database)
    trials = operator.reads("jobs", "trials", job_id)
    assert ("tp=2" in trials, "seqs=64" in trials) == (True, True)
    front = operator.reads("jobs", "pareto", job_id)
    assert "p95_ttft_ms 310" in front
    assert "itl" not in front + operator.reads("jobs", "trials", job_id)
    assert "num_devices, p95_ttft_ms" in front
    assert operator.reads("jobs", "importance", job_id) == "none\n", "of one trial"


def _finished_job(database: Database) -> str:
    metrics = TRIAL["record"]["metrics"]
    others = {"p50_itl_ms": metrics["p95_tpot_ms"]}  # what the SLA says nothing of
    record = TRIAL["record"] | {"seconds": 1.1, "metrics": metrics | others}
    spec = {name: value for name, value in JOB_BODY.items() if name != "model"}
    with database.begin() as uow:
        job = uow.jobs.add(
            spec={**spec, "model_dir": "m", "options": {}}, num_trials=1, created_by="key_test"
        )
        uow.trials.add(job.id, record)
        return job.id


def test_a_recommendation_is_listed_and_shown_with_its_schedule(
    operator: Operator, database: Database
) -> None:
    found = add_recommendation(database)
    with database.begin() as uow:
        row = uow.recommendations.get(found)
        row.document = {**row.document, "capacity_table": capacity_table()}
    assert found in operator.reads("recommendations", "list")
    shown = operator.reads("recommendations", "show", found)
    assert f"from 0 requests/s: {CALM}" in shown
    assert f"1 device carries {RATE_OF_ONE_RPS:g} requests/s (low end " in shown
    assert f"gearshift apply {found} --service {operator.url} --engine" in shown
    assert operator.told("recommendations", "show", found)["sla"] == "p95_ttft_ms<=500"


def test_a_policy_is_changed_compared_and_rolled_back(operator: Operator, engine_id: str) -> None:
    patch = '{"caps": {"max_num_seqs": 96}, "sla": "p95_ttft_ms<=500"}'
    alone = operator.types("policies", "diff", "chat")
    assert (alone.exit_code, "no two versions of its policy yet" in alone.stderr) == (2, True)
    dry = operator.reads("policies", "apply", "chat", patch, "--dry-run")
    assert "caps.max_num_seqs: 64 -> 96 (hot)" in dry
    one_knob = operator.reads("policies", "apply", "chat", "caps.max_num_seqs=96", "--dry-run")
    assert "caps.max_num_seqs: 64 -> 96 (hot)" in one_knob
    assert "dry run: nothing was changed" in dry
    changed = operator.told("policies", "apply", "chat", patch, "--reason", "evening")
    assert (changed["engine"], changed["version"]) == (engine_id, 2)
    shown = operator.reads("policies", "show", engine_id)
    assert "version 2 (pending)" in shown
    assert "SLA p95_ttft_ms<=500" in shown
    assert "evening" in operator.reads("policies", "list", "chat")
    differs = operator.told("policies", "diff", "chat")
    assert {"knob": "caps.max_num_seqs", "from": 64, "to": 96} in differs["changes"]
    assert "version 1 -> 2: evening" in operator.reads("policies", "diff", "chat", "--from", 1)
    back = operator.reads("policies", "rollback", "chat", "--version", 1)
    show = f"gearshift policies show {engine_id} --service {operator.url}"
    assert f"policy version 3; '{show}' says when" in back
    assert "from 1 to 256" in operator.reads("policies", "knobs", "chat")
    for words, message in (
        (("diff", "chat", "--to", 9), "version 9: there are 1 to 3"),
        (
            ("diff", "chat", "--to", 1),
            "version 1 is the first: compare it with a later one, --to 3",
        ),
        (("apply", "chat", "{caps}"), "no JSON"),
        (("apply", "chat", '{"cap": 1}'), "/cap: unknown knob (did you mean 'caps'?)"),
        (("apply", "chat", "caps.max_seqs=9"), "did you mean 'max_num_seqs'?"),
        (("show", "chatt"), "(did you mean 'chat'?)"),
    ):
        done = operator.types("policies", *words)
        assert (done.exit_code, message in done.stderr) == (2, True), done.output


def test_engines_are_listed_and_shown_whoever_reports_them(
    operator: Operator, engine_id: str
) -> None:
    assert engine_id in operator.reads("engines", "list")
    assert "runs sp=2,shift" in operator.reads("engines", "show", "chat")
    unknown = operator.types("engines", "forecast", "chat")
    assert (unknown.exit_code, "409" in unknown.stderr) == (2, True)
    with Client(operator.url, ADMIN) as client:  # a name that begins as ids do
        named = client.send(act("/v1/engines", RegisteredView, engine_body("eng_7"))).id
    assert operator.told("engines", "show", "eng_7")["id"] == named


def test_a_decision_says_what_was_seen_and_what_was_not_done(
    operator: Operator, engine_id: str, database: Database
) -> None:
    with database.begin() as uow:
        for reason in ("capacity_load_up", "load_up"):
            number = uow.decisions.add(
                DecisionRow(
                    engine_id=engine_id,
                    action="move",
                    reason=reason,
                    band_index=1,
                    settings=CALM.to_json(),
                    rejected=[{"band_index": 0, "why": "load_is_higher"}],
                    observed={"rate_rps": 41.31, "metrics": {"p95_ttft_ms": 7874.1}},
                    policy_version=2,
                )
            ).id
    newest = operator.told("decisions", "list", "--engine", "chat", "--newest", 1)["decisions"]
    assert [row["id"] for row in newest] == [number]
    assert "capacity_load_up" in operator.reads("decisions", "list")
    told = operator.reads("decisions", "explain", number)
    assert "why: load_up: the load has risen into a higher band" in told
    assert "saw: ttft_ms: p95 7870" in told
    assert "not: load band 0: load is higher" in told
    gone = operator.types("decisions", "explain", number + 1)
    assert (gone.exit_code, "does not exist" in gone.stderr) == (2, True)


def test_a_step_model_is_uploaded_and_its_calibration_read(
    operator: Operator, tmp_path: Path
) -> None:
    file = tmp_path / "model.json"
    file.write_text('{"fingerprint": "cpu:x86_64:8:torch-2.13", "schema": "step-model/v1"}')
    model = operator.told("cost-models", "upload", file)
    assert model["id"] in operator.reads("cost-models", "list")
    assert "cpu:x86_64" in operator.reads("cost-models", "show", model["id"])
    assert "no live trial" in operator.reads("cost-models", "calibration", model["id"])


def test_an_uploaded_trace_is_shown_by_its_id(operator: Operator, tmp_path: Path) -> None:
    trace = tmp_path / "calm.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,6\n2,5,6\n")
    found = operator.told("workload", "upload", trace)
    assert "2 requests, in 2.0 s" in operator.reads("workload", "show", found["id"])
