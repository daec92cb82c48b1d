"""Jobs of `gearshift tune` in the local database: kept as trials end, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.cli.local_database import open_database
from api.documents.tuning_spec import job_document
from api.jobs.kept import Keeper
from api.services.audit import service_caller
from api.services.job_moves import COMMAND_LINE
from api.services.jobs import cancel
from store import Database
from store.models import JobState
from tests.api.cli.conftest import Run
from tuner.search.spec import TuningSpec

JOB = (
    "--model", "llama-3.1-8b", "--devices", "2", "--hardware", "2xh200",
    "--workload", "poisson:rate=50,input=64,output=8,requests=20",
    "--sla", "p95_ttft_ms<=1000", "--seed", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def trials_of(folder: Path, job_id: str) -> list[dict[str, Any]]:
    database = Database(f"sqlite:///{folder / 'gearshift.db'}")
    try:
        with database.read() as uow:
            return uow.trials.list_records(job_id)
    finally:
        database.close()


def without_seconds(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in trial.items() if k != "seconds"} for trial in trials]


def interrupted(*words: str, trials: int, presses: int = 1) -> subprocess.CompletedProcess[str]:
    """`gearshift tune` as a process, Ctrl-C pressed after so many trials."""
    command = [sys.executable, "-m", "api.cli.main", "tune", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stderr is not None
        lines, seen = [], 0
        try:
            for line in process.stderr:
                lines.append(line)
                seen += line.startswith("trial ")
                if seen == trials:
                    break
            for _ in range(presses):
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, "".join(lines) + err)


def test_ctrl_c_tells_what_was_found_and_resume_goes_on_without_repeating_it(
    run: Run, data_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    ended = interrupted(*JOB, "--trials", "200", "--out", str(out), trials=2)
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    partial = json.loads(out.read_text())
    assert partial["is_interrupted"]
    assert 2 <= len(partial["trials"]) < 200
    assert partial["recommendation"]["sla_probability"] >= 0.8
    assert any("interrupted after" in warning for warning in partial["warnings"])
    assert f"gearshift tune --resume {partial['job']}" in ended.stdout
    kept = trials_of(data_dir, partial["job"])
    assert without_seconds(kept) == without_seconds(partial["trials"])

    wanted = len(kept) + 2
    resumed = run("tune", "--resume", "last", "--trials", wanted, "--json")
    assert resumed.exit_code == 0, resumed.output
    document = json.loads(resumed.stdout)
    assert document["job"] == partial["job"]
    assert not document["is_interrupted"]
    assert document["resume"] is None
    assert document["trials"][: len(kept)] == kept
    assert len(document["trials"]) == wanted
    assert sum(line.startswith("trial ") for line in resumed.stderr.splitlines()) == 2


def test_a_job_killed_outright_has_its_finished_trials_kept(run: Run, data_dir: Path) -> None:
    command = [sys.executable, "-m", "api.cli.main", "tune", *JOB, "--trials", "200"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stderr is not None
        seen = 0
        for line in process.stderr:
            seen += line.startswith("trial ")
            if seen == 2:
                break
        process.kill()
    resumed = run("tune", "--resume", "last", "--trials", 3, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert "settings simulated before" in resumed.stderr
    document = json.loads(resumed.stdout)
    assert len(trials_of(data_dir, document["job"])) == len(document["trials"]) >= 3


def test_a_job_that_is_cancelled_elsewhere_ends_its_command(run: Run, data_dir: Path) -> None:
    """As in the dashboard of a service that uses the same database."""
    cancelled: list[str] = []

    def cancel_it() -> None:
        database = Database(f"sqlite:///{data_dir / 'gearshift.db'}")
        while not cancelled:
            time.sleep(0.05)
            with suppress(sa.exc.OperationalError), database.begin() as uow:
                job = uow.jobs.find_newest(created_by=COMMAND_LINE, states=[JobState.RUNNING])
                if job is not None and uow.trials.count(job.id):
                    cancelled.append(cancel(uow, job.id, caller=service_caller("test")).id)
        database.close()

    elsewhere = threading.Thread(target=cancel_it, daemon=True)
    elsewhere.start()
    done = run("tune", *JOB, "--trials", 5000, "--json")
    elsewhere.join(10)
    assert done.exit_code == 130, done.output
    document = json.loads(done.stdout)
    assert [document["job"]] == cancelled
    assert document["is_interrupted"]
    assert 1 <= len(trials_of(data_dir, document["job"])) < 5000


def test_a_finished_job_is_kept_with_its_answer_and_cannot_be_resumed(
    run: Run, data_dir: Path
) -> None:
    done = run("tune", *JOB, "--trials", 1, "--json")
    assert done.exit_code == 0, done.output
    job_id = json.loads(done.stdout)["job"]
    database = Database(f"sqlite:///{data_dir / 'gearshift.db'}")
    with database.read() as uow:
        job = uow.jobs.get(job_id)
        assert (job.state, job.created_by) == (JobState.SUCCEEDED, COMMAND_LINE)
        assert uow.recommendations.find_for_job(job_id) is not None
    database.close()
    again = run("tune", "--resume", job_id)
    assert again.exit_code == 2
    assert "is succeeded: there is nothing to resume" in again.stderr
    assert "unfinished tuning job last does not exist" in run("tune", "--resume", "last").stderr


def test_a_job_that_another_command_works_on_is_not_gone_on_with_beside_it(
    run: Run, data_dir: Path
) -> None:
    """Both would run the same trials, and the second answer would be kept over the first."""
    spec = TuningSpec(
        model_dir="llama-3.1-8b",
        num_devices=1,
        hardware="h100",
        workload="poisson:rate=50,input=64,output=8,requests=20",
        sla="p95_ttft_ms<=1000",
    )
    database = open_database()
    with database.begin() as uow:
        job_id = uow.jobs.add(spec=job_document(spec), num_trials=12, created_by=COMMAND_LINE).id
        uow.jobs.get(job_id).state = JobState.RUNNING
    elsewhere = Keeper(database, job_id)
    for word in (job_id, "last"):
        refused = run("tune", "--resume", word)
        assert (refused.exit_code, refused.stdout) == (2, ""), refused.output
        assert f"{job_id} is worked on by another command now" in refused.stderr
    elsewhere.close()
    Keeper(database, job_id).close()  # whoever comes now has it
    assert not list(data_dir.glob("*.lock")), "nothing of it is left behind"
    database.close()


def test_a_job_that_is_removed_elsewhere_ends_and_takes_nothing_with_it() -> None:
    """What its command found meanwhile is told all the same."""
    database = open_database()
    with database.begin() as uow:
        job_id = uow.jobs.add(spec={}, num_trials=9, created_by=COMMAND_LINE).id
    keeper = Keeper(database, job_id)
    with database.begin() as uow:
        uow.jobs.delete(uow.jobs.get(job_id))
    keeper.keep({"number": 0})
    keeper.tell("spent", {"device_seconds": 1.0})
    keeper.fail("the server died")
    assert keeper.is_cancelled()
    assert keeper.resume_command is None
    keeper.close()
    database.close()


def test_options_beside_resume_that_would_be_in_vain_are_refused(run: Run) -> None:
    done = run("tune", "--resume", "last", "--sla", "p95_ttft_ms<=1", "--probe-requests", 3)
    assert done.exit_code == 2
    assert "--sla, --probe-requests: --resume goes on with the options" in done.stderr


def test_a_new_job_needs_its_model_workload_and_sla(run: Run) -> None:
    done = run("tune", "--sla", "p95_ttft_ms<=1")
    assert done.exit_code == 2
    assert "--model, --workload: needed for a new job" in done.stderr


def test_where_nothing_can_be_kept_the_search_still_answers(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path / "file" / "data"))
    done = run("tune", *JOB, "--trials", 1, "--json")
    assert done.exit_code == 0, done.output
    assert "trials are not kept" in done.stderr
    assert json.loads(done.stdout)["job"] is None
