"""``/jobs``: tuning jobs, newest first."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import Row, card, empty, frame, page_path, poll, table
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.tuning import TuningJobView
from api.services import jobs
from store import UnitOfWork
from store.paging import PageRequest

PATH, TITLE = "/jobs", "Tuning jobs · Gearshift"
MOST = 100
EVERY_S = 2.0
COLUMNS = (
    ("job", "Job"),
    ("state", "State"),
    ("trials", "Trials"),
    ("workload", "Workload"),
    ("sla", "SLA"),
    ("begun", "Created"),
    ("found", "Found"),
)


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    found = await visit.read(_read)
    with frame(request, visit, "Tuning jobs"):
        if visit.may(Scope.TUNE):
            ui.link("New tuning job", "/jobs/new").classes("go")
        with card() as there:
            shown = table(
                COLUMNS, [_row(job) for job in found], page=25, breaks=("workload", "sla")
            )
        with card() as nothing:
            empty(
                "No tuning job yet.",
                "A job looks for the settings that meet an SLA: start one above, or by gearshift "
                "jobs create.",
            )

    def choose(listed: list[TuningJobView]) -> None:
        there.set_visibility(bool(listed))
        nothing.set_visibility(not listed)

    async def refresh() -> None:
        listed = await visit.read(_read)
        shown.show_rows([_row(job) for job in listed])
        choose(listed)

    choose(found)
    poll(refresh, EVERY_S)


def _read(uow: UnitOfWork) -> list[TuningJobView]:
    return jobs.views(uow, uow.jobs.list_page(PageRequest(limit=MOST)).items)


def _row(job: TuningJobView) -> Row:
    found: object = words.NONE
    if job.recommendation_id is not None:
        path = page_path("recommendations", job.recommendation_id)
        found = {"text": "the answer", "href": path}
    return {
        "key": job.id,
        "job": {"text": words.job_title(job.spec), "href": page_path("jobs", job.id)},
        "state": {"text": job.state.value, "tone": words.JOB_TONES[job.state]},
        "trials": f"{job.trials_done}\u00a0of\u00a0{job.num_trials}",
        "workload": str(job.spec.get("workload", words.NONE)),
        "sla": str(job.spec.get("sla", words.NONE)),
        "begun": words.at(job.created_at),
        "found": found,
    }
