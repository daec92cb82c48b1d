"""Which open jobs a worker takes up: what drift asks for waits for what people ask for."""

from __future__ import annotations

from api.jobs.workflow import due_jobs
from api.services.job_moves import COMMAND_LINE
from store.models import TuningJob


def job(name: str, *, by: str = "key_1", retune_key: str | None = None) -> TuningJob:
    return TuningJob(id=name, spec={}, num_trials=1, created_by=by, retune_key=retune_key)


RETUNE = job("retune", by="controller", retune_key="eng_1/rec_1")


def names(*jobs: TuningJob, handed: tuple[str, ...] = ()) -> list[str]:
    return [found.id for found in due_jobs(jobs, handed=handed)]


def test_what_drift_asks_for_waits_while_somebodys_own_job_is_open() -> None:
    assert names(RETUNE, job("own")) == ["own"]
    assert names(RETUNE) == ["retune"]


def test_one_that_has_begun_goes_on() -> None:
    assert names(RETUNE, job("own"), handed=("retune",)) == ["retune", "own"]


def test_a_commands_own_job_is_its_own_and_holds_nobody_up() -> None:
    assert names(RETUNE, job("cli", by=COMMAND_LINE)) == ["retune"]
