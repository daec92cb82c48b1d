"""What is made of a finished job over REST: its Pareto front, its knobs, its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.jobs.backend import Verdict
from api.jobs.keeping import close, keep_trial
from api.jobs.tuner_backend import plain
from api.services.job_moves import move
from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from store import Database
from store.models import JobState
from tuner.search.report import SCHEMA
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialRecord, TrialState

Json = dict[str, Any]
SLA = "p95_ttft_ms<=500,p95_tpot_ms<=50"
LOAD = "poisson:rate=8,input=64,output=8,requests=24"
Finished = Callable[[], str]


def _trial(number: int, tp: int, seqs: int, ttft_ms: float) -> TrialRecord:
    metrics = {"p95_ttft_ms": ttft_ms, "p95_tpot_ms": 160 / tp}
    caps = Caps(max_num_seqs=seqs, max_num_batched_tokens=2048)
    return TrialRecord(
        number=number,
        settings=Settings(plan=ParallelPlan(tp=tp), caps=caps),
        fidelity=Fidelity.SIMULATED,
        state=TrialState.COMPLETE,
        metrics={k: {"value": v, "low": 0.9 * v, "high": 1.1 * v} for k, v in metrics.items()},
        is_feasible=False,
        reason="misses",
        seconds=0.1,
        sla_probability=0.1,
    )


@pytest.fixture
def verdict() -> Verdict:
    """The answer of a search that tried every way but the right one."""
    trials = [
        _trial(0, 1, 16, 900.0),
        _trial(1, 1, 64, 800.0),
        _trial(2, 2, 16, 450.0),
        _trial(3, 2, 64, 460.0),
        _trial(4, 1, 64, 810.0),  # as trial 1, later
    ]
    records = [trial.to_json() for trial in trials]
    spec = TuningSpec(
        model_dir="llama-3.1-8b", num_devices=2, workload=LOAD, sla=SLA, hardware="2xh200"
    )
    report = {
        "schema": SCHEMA,
        "title": "a model; a load; an SLA",
        "recommendation": None,
        "infeasible": {
            "closest": records[2],
            "min_probability": 0.8,
            "binding": None,
            "relaxations": [],
        },
        "trials": records,
        "simulated": records[:1],
        "spec": spec.to_json(),
    }
    return Verdict(
        report=plain(report), recommendation=None, schedule=None, sla=SLA, reason="nothing meets it"
    )


@pytest.fixture
def finished(client: TestClient, database: Database, job_body: Json, verdict: Verdict) -> Finished:
    """Ends a new job with that answer, as the worker does, and returns its URL."""

    def finish() -> str:
        job_id = client.post("/v1/tuning-jobs", json={**job_body, "sla": SLA}).json()["id"]
        with database.begin() as uow:
            job = uow.jobs.get(job_id)
            move(uow, job, JobState.RUNNING, "trials")
            for record in verdict.report["trials"]:
                keep_trial(uow, job_id, record)
            close(uow, job, verdict)
        return f"/v1/tuning-jobs/{job_id}"

    return finish


def test_the_front_holds_trials_that_no_other_beats(client: TestClient, finished: Finished) -> None:
    url = finished()
    told = client.get(f"{url}/pareto").json()
    assert [aim["key"] for aim in told["aims"]] == ["num_devices", "p95_ttft_ms", "p95_tpot_ms"]
    # Trial 1 was tried again; trial 0 is beaten by it, and trial 3 by trial 2.
    assert [point["trial"] for point in told["front"]] == [4, 2]
    assert (told["num_points"], told["front"][1]["num_devices"]) == (4, 2)
    row = client.get(f"{url}/trials").json()[2]["record"]
    assert told["front"][1]["metrics"] == row["metrics"]
    assert told["front"][1]["settings"] == row["settings"]


def test_importance_names_every_knob_that_was_varied(
    client: TestClient, finished: Finished
) -> None:
    told = client.get(f"{finished()}/importance").json()
    assert told["num_points"] == 5
    tp, seqs = told["knobs"]
    assert (tp["knob"], seqs["knob"]) == ("tp", "max_num_seqs")
    assert tp["share"] > 0.9 > seqs["share"]
    assert [(level["value"], level["num_points"]) for level in tp["levels"]] == [(1, 3), (2, 2)]


def test_the_report_comes_as_json_as_markdown_or_as_a_page_that_loads_nothing(
    client: TestClient, finished: Finished, verdict: Verdict
) -> None:
    url = finished()
    assert client.get(f"{url}/report").json() == verdict.report
    page = client.get(f"{url}/report", headers={"accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.text
    assert "P(SLA met)" in page.text
    text = client.get(f"{url}/report", params={"format": "markdown"})
    assert text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert "## Pareto front" in text.text
    assert client.get(f"{url}/report", params={"format": "pdf"}).status_code == 422


def test_a_job_without_trials_has_an_empty_front_and_no_report(
    client: TestClient, job_body: Json
) -> None:
    url = f"/v1/tuning-jobs/{client.post('/v1/tuning-jobs', json=job_body).json()['id']}"
    told = client.get(f"{url}/pareto").json()
    assert (told["front"], told["num_points"]) == ([], 0)
    assert client.get(f"{url}/importance").json()["knobs"] == []
    for params in ({}, {"format": "html"}):
        assert client.get(f"{url}/report", params=params).status_code == 409
    for part in ("pareto", "importance", "report"):
        assert client.get(f"/v1/tuning-jobs/none/{part}").status_code == 404
