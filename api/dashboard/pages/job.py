"""``/jobs/ID``: one tuning job: how far it is, its trials, and what they say."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from api.dashboard import words
from api.dashboard.job_charts import Pictures, named
from api.dashboard.job_known import LIVE, Known, analyse, estimate, look
from api.dashboard.layout import (
    Row,
    Text,
    button,
    card,
    confirm,
    facts,
    frame,
    guarded,
    missing,
    note,
    page_path,
    poll,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.tuning import TuningJobView
from api.services import jobs
from api.web.auth import Caller
from store import NotFoundError, UnitOfWork
from store.models import JobState
from store.models.base import utc_now
from tuner.report.answers import Form, report_of, write_report
from tuner.search.report import infeasible_text

PATH, TITLE = "/jobs/{job_id}", "Tuning job · Gearshift"
BACK = ("/jobs", "tuning jobs")
# What is read before the page is there.
TRIALS_AT_FIRST = 40
FACTS = ("Trials", "Time", "Devices", "Created", "Workload", "SLA", "Id")
Json = dict[str, Any]


async def show(request: Request, job_id: str) -> None:
    """The page."""
    visit = Visit.of(request)
    try:
        job = await visit.read(lambda uow: jobs.view(uow, uow.jobs.get(job_id)))
    except NotFoundError as error:
        missing(request, visit, str(error), back=BACK)
        return
    known = Known(job)
    await visit.read(lambda uow: look(uow, job_id, known, most=TRIALS_AT_FIRST))
    with frame(request, visit, f"Tuning {words.job_title(job.spec)}", back=BACK):
        head = _Head(visit, known)
        drawn = Pictures(known)
        with card("Trials"):
            trials = table(_columns(known), _rows(known), none=_none(known), page=20)
            below = Text("p", _below(known), "soft")

    async def refresh() -> None:
        before = known.so_far
        await visit.read(lambda uow: look(uow, job_id, known))
        head.show(known)
        if before != known.so_far:
            trials.show_rows(_rows(known))
            below.set_text(_below(known))
        if await visit.read(lambda uow: analyse(uow, job_id, known)):
            drawn.show(known)
        is_whole = len(known.trials) == known.job.trials_done
        if known.job.state.is_final and is_whole and known.analysed == known.so_far:
            timer.deactivate()

    timer = poll(refresh)


class _Head:
    """State, progress and what one may do now."""

    def __init__(self, visit: Visit, known: Known) -> None:
        self._visit = visit
        self._job_id = known.job.id
        with ui.element("div").classes("row"):
            self._tag = Text("span", "", "tag")
            self._why = Text("span", "", "soft").props('aria-live="polite"')
        self._said = ui.element("div")
        with card():
            with (
                ui.element("div")
                .classes("bar")
                .props(
                    'role="progressbar" aria-label="Trials done" aria-valuemin=0 aria-valuemax=100'
                ) as self._bar
            ):
                self._done = ui.element("div")
            self._change = facts([(name, "") for name in FACTS])
            with ui.element("div").classes("row"):
                self._next = ui.link("See the recommendation", "/").classes("go")
                self._cancel = button("Cancel", self._ask, "risk")
                self._report = button("Download the report", self._write)
                self._again = ui.link("Start one like it", f"/jobs/new?like={known.job.id}")
                self._again.classes("plain")
                self._remove = button("Remove", self._ask_removal, "risk")
        self.show(known)

    def show(self, known: Known) -> None:
        job = known.job
        self._tag.set_text(job.state.value)
        self._tag.classes(replace=f"tag {words.JOB_TONES[job.state]}")
        # Why nothing met the SLA is told below, with what would help.
        self._why.set_text("" if known.infeasible else job.reason)
        part = 100 if job.state.is_final else round(100 * job.trials_done / max(1, job.num_trials))
        self._done.style(f"width:{part}%")
        self._bar.props["aria-valuenow"] = part
        self._bar.set_visibility(not job.state.is_final)
        self._change(_facts(job))
        self._next.set_visibility(job.recommendation_id is not None)
        if job.recommendation_id is not None:
            self._next.props["href"] = page_path("recommendations", job.recommendation_id)
        may = self._visit.may(Scope.TUNE)
        can_end = job.state in (JobState.QUEUED, JobState.RUNNING)
        self._cancel.set_visibility(may and can_end)
        self._again.set_visibility(may)
        self._remove.set_visibility(may and job.state.is_final)
        self._report.set_visibility(job.state.is_final and job.state is not JobState.FAILED)
        if known.infeasible and not self._said.default_slot.children:
            with self._said:
                _say_infeasible(known.infeasible)

    async def _ask(self) -> None:
        question = "Stop it now? Finished trials stay."
        if await confirm(question, yes="Cancel the job", no="Let it run"):
            await guarded(self._end)

    async def _end(self) -> None:
        job_id = self._job_id
        await self._visit.act(
            Scope.TUNE, lambda uow, caller: jobs.cancel(uow, job_id, caller=caller).state
        )

    async def _ask_removal(self) -> None:
        question = "Remove the job with its trials? What it recommends stays."
        if await confirm(question, yes="Remove it", no="Keep it"):
            await guarded(self._delete)

    async def _delete(self) -> None:
        job_id = self._job_id

        def delete(uow: UnitOfWork, caller: Caller) -> None:
            jobs.delete(uow, job_id, caller=caller)

        await self._visit.act(Scope.TUNE, delete)
        ui.navigate.to("/jobs")

    async def _write(self) -> None:
        document = await self._visit.read(lambda uow: jobs.report(uow, self._job_id))
        text = await run_in_threadpool(_report_page, document)
        ui.download.content(text, f"{self._job_id}.html", "text/html")


def _report_page(document: Json) -> str:
    return write_report(report_of(document), Form.HTML)


def _say_infeasible(found: Json) -> None:
    note(infeasible_text(found), "bad")
    ways = [r for r in found.get("relaxations", ()) if r.get("bound") is not None]
    for way in ways:
        note(f"{way['relaxed']} would do, not {way['constraint']}", "warn")
    Text("p", "What may help: looser bounds, more or other devices, less load; start one like it.")


def _facts(job: TuningJobView) -> list[str]:
    spec = job.spec
    return [
        f"{job.trials_done} of {job.num_trials}",
        _time(job),
        f"up to {spec.get('num_devices', '?')}",
        words.at(job.created_at),
        str(spec.get("workload", words.NONE)),
        str(spec.get("sla", words.NONE)),
        job.id,
    ]


def _time(job: TuningJobView) -> str:
    """What it took, or how long it will take from now."""
    if job.finished_at is not None:
        begin = job.started_at or job.created_at
        return f"took {words.span((job.finished_at - begin).total_seconds())}"
    if job.started_at is None:
        return "waits for a worker"
    spent_s = (utc_now() - job.started_at).total_seconds()
    if not job.trials_done:
        return f"left: known after the first trial ({words.span(spent_s)} so far)"
    if job.trials_done >= job.num_trials:
        return "the trials are done: the best is checked again"
    left_s = spent_s / job.trials_done * (job.num_trials - job.trials_done)
    return f"about {words.span(left_s)} left, if trials take as long as so far"


def _none(known: Known) -> str:
    return "None." if known.job.state.is_final else "The first one is prepared: step times first."


def _below(known: Known) -> str:
    """What the table does not say by itself."""
    told = "In brackets: 90 % intervals."
    if known.chosen is None or any(known.is_chosen(record) for record in known.trials):
        return told
    chosen = words.settings_of(known.chosen)
    return f"{told} The recommended settings, {chosen}, were judged beside these trials."


def _columns(known: Known) -> list[tuple[str, str]]:
    return [
        ("number", "Trial"),
        ("settings", "Settings"),
        ("fidelity", "Known by"),
        *((c.key, named(c)) for c in known.bounds),
        ("chance", "P(SLA met)"),
        ("verdict", "Verdict"),
    ]


def _rows(known: Known) -> list[Row]:
    return [_row(record, known) for record in known.trials]


def _row(record: Json, known: Known) -> Row:
    chance = record.get("sla_probability")
    tone = "good" if record.get("is_feasible") else "warn"
    # Where it was simulated the page says at its top.
    verdict: object = str(record.get("reason") or words.NONE).partition("; simulated on ")[0]
    if known.is_chosen(record):
        verdict = {"text": "recommended", "tone": "good", "more": f" {verdict}"}
    baseline = " (baseline)" if record["number"] == 0 else ""
    return {
        "key": record["number"],
        "number": f"{record['number']}{baseline}",
        "settings": words.settings_of(record["settings"]),
        "fidelity": str(record.get("fidelity") or words.NONE),
        **{c.key: _told(record, c.key) for c in known.bounds},
        "chance": words.NONE if chance is None else {"text": f"{chance:.2f}", "tone": tone},
        "verdict": verdict,
    }


def _told(record: Json, key: str) -> str:
    """A value with its interval; of a live trial also what was predicted."""
    told = _spread(estimate(record, "metrics", key))
    if record.get("fidelity") not in LIVE:
        return told
    predicted = estimate(record, "predicted", key)
    return f"{told}; predicted {_spread(predicted)}" if predicted else told


def _spread(found: Json) -> str:
    """A value, and between which it lies."""
    if not found:
        return words.NONE
    value, low, high = (words.number_short(found.get(part)) for part in ("value", "low", "high"))
    return f"{value} ({low}\u00a0to\u00a0{high})"
