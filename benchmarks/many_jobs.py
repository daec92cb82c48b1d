"""Finished tuning jobs in a database, as many as one likes, with what each leaves behind."""

from __future__ import annotations

from store import Database
from store.models import JobState, RecommendationRow, Trial, TuningJob
from store.models.base import new_id, utc_now

TRIALS = 4
BATCH = 500
# A report is some kilobytes; the list does not show it.
REPORT = {"trials": [{"number": n, "settings": "x" * 1500} for n in range(TRIALS)]}
SPEC = {
    "model_dir": "/models/tiny",
    "num_devices": 2,
    "workload": "poisson:rate=4,input=64,output=8,seconds=5",
    "sla": "p95_ttft_ms<=500",
    "trials": TRIALS,
    "options": {"hardware": "8xh200"},
}


def add_jobs(url: str, number: int) -> None:
    """Add ``number`` completed jobs with their trials and recommendations."""
    database = Database(url)
    for begin in range(0, number, BATCH):
        with database.begin() as uow:
            for _ in range(min(BATCH, number - begin)):
                job = _job()
                uow.session.add(job)
                uow.session.flush()
                uow.session.add_all(_results(job))
    database.close()


def _job() -> TuningJob:
    return TuningJob(
        id=new_id("job"),
        state=JobState.SUCCEEDED,
        reason="recommended",
        spec=SPEC,
        report=REPORT,
        num_trials=TRIALS,
        created_by="benchmark",
        finished_at=utc_now(),
    )


def _results(job: TuningJob) -> list[Trial | RecommendationRow]:
    trials = [Trial(job_id=job.id, number=n, state="completed", record={}) for n in range(TRIALS)]
    document = {"settings": {"plan": {"dp": 1, "pp": 1, "sp": 2, "tp": 1}}}
    return [*trials, RecommendationRow(job_id=job.id, sla=SPEC["sla"], document=document)]
