"""``/jobs/ID``: one tuning job: how far it is, its trials, and what they say."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from nicegui import ui

from api.dashboard import charts, words
from api.dashboard.layout import (
    Row,
    Text,
    button,
    card,
    chart,
    confirm,
    facts,
    frame,
    guarded,
    missing,
    note,
    page_path,
    poll,
    redraw,
    set_rows,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.analysis import ImportanceView, ParetoView
from api.schemas.tuning import TuningJobView
from api.services import analysis, jobs
from policies.constraint import Constraint
from policies.errors import PolicyInputError
from policies.sla import Sla
from store import NotFoundError, UnitOfWork
from store.models import JobState
from store.models.base import utc_now
from store.paging import PageRequest
from tuner.search.report import infeasible_text

PATH, TITLE = "/jobs/{job_id}", "Tuning job · Gearshift"
# Trials that one look reads at most, and the one before the page is there; the next reads on.
TRIALS_AT_ONCE, TRIALS_AT_FIRST = 500, 40
# After an analysis, so many times as long as it took passes until the next.
ANALYSIS_REST = 10
FACTS = ("Trials", "Time left", "SLA", "Workload", "Model", "Hardware", "Created", "Id")
NOT_YET = "comparing the trials ..."
LIVE = ("probed", "measured")
Json = dict[str, Any]


@dataclass
class Known:
    """What the page has read of a job so far; trials never change once they are there."""

    job: TuningJobView
    trials: list[Json] = field(default_factory=list)
    pareto: ParetoView | None = None
    importance: ImportanceView | None = None
    infeasible: Json | None = None
    analysed: tuple[int, JobState] | None = None
    next_analysis_s: float = 0.0

    @property
    def so_far(self) -> tuple[int, JobState]:
        """Trials that are known, and the job's state."""
        return len(self.trials), self.job.state

    @property
    def sla(self) -> Sla | None:
        """What the job is to meet; None where it cannot be read any more."""
        try:
            return Sla.parse(self.job.spec["sla"])
        except (KeyError, PolicyInputError):
            return None

    @property
    def bounds(self) -> list[Constraint]:
        """The latencies that the SLA bounds, as far as trials tell of them."""
        found = () if self.sla is None else self.sla.constraints
        return [c for c in found if c.metric.is_latency and c.percentile is not None]


async def show(request: Request, job_id: str) -> None:
    """The page."""
    visit = Visit.of(request)
    try:
        job = await visit.read(lambda uow: jobs.view(uow, uow.jobs.get(job_id)))
    except NotFoundError as error:
        missing(request, visit, str(error), back=("/jobs", "tuning jobs"))
        return
    known = Known(job)
    await visit.read(lambda uow: _look(uow, job_id, known, most=TRIALS_AT_FIRST))
    with frame(request, visit, "Tuning job", back=("/jobs", "tuning jobs")):
        head = _Head(visit, known)
        drawn = _Pictures(known)
        with card("Trials"):
            trials = table(_columns(known), _rows(known), none=_none(known), page=20)

    async def refresh() -> None:
        before = known.so_far
        await visit.read(lambda uow: _look(uow, job_id, known))
        head.show(known)
        if before != known.so_far:
            set_rows(trials, _rows(known))
        if await visit.read(lambda uow: _analyse(uow, job_id, known)):
            drawn.show(known)
        is_whole = len(known.trials) == known.job.trials_done
        if known.job.state.is_final and is_whole and known.analysed == known.so_far:
            timer.deactivate()

    timer = poll(refresh)


def _look(uow: UnitOfWork, job_id: str, known: Known, *, most: int = TRIALS_AT_ONCE) -> None:
    """Read on: the job, its new trials, and why nothing met the SLA."""
    known.job = jobs.view(uow, uow.jobs.get(job_id))
    after = known.trials[-1]["number"] if known.trials else None
    page = uow.trials.list_page(job_id, PageRequest(limit=most, after=after))
    for record in uow.trials.records(page.items):
        known.trials.append({k: v for k, v in record.items() if k != "document"})
    if known.job.state is JobState.INFEASIBLE and known.infeasible is None:
        known.infeasible = jobs.report(uow, job_id).get("infeasible") or {}


def _analyse(uow: UnitOfWork, job_id: str, known: Known) -> bool:
    """What the trials say, where there are others than last time; whether that was asked.

    It reads all of them, so it rests in proportion to how long that takes.
    """
    begin_s = time.monotonic()
    if known.analysed == known.so_far or begin_s < known.next_analysis_s:
        return False
    known.analysed = known.so_far
    if known.trials:
        known.pareto = analysis.pareto(uow, job_id)
        known.importance = analysis.importance(uow, job_id)
    now_s = time.monotonic()
    known.next_analysis_s = now_s + ANALYSIS_REST * (now_s - begin_s)
    return True


class _Head:
    """State, progress and what one may do now."""

    def __init__(self, visit: Visit, known: Known) -> None:
        self._visit = visit
        self._job_id = known.job.id
        with ui.element("div").classes("row"):
            self._tag = Text("span", "", "tag")
            self._why = Text("span", "", "soft").props('aria-live="polite"')
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
                self._again = ui.link("New tuning job", "/jobs/new")
        self._said = ui.element("div")
        self.show(known)

    def show(self, known: Known) -> None:
        job = known.job
        self._tag.set_text(job.state.value)
        self._tag.classes(replace=f"tag {words.JOB_TONES[job.state]}")
        self._why.set_text(job.reason)
        part = 100 if job.state.is_final else round(100 * job.trials_done / max(1, job.num_trials))
        self._done.style(f"width:{part}%")
        self._bar.props(f"aria-valuenow={part}")
        self._change(_facts(job))
        has_found = job.recommendation_id is not None
        self._next.set_visibility(has_found)
        if job.recommendation_id is not None:
            self._next.props(f'href="{page_path("recommendations", job.recommendation_id)}"')
        may = self._visit.may(Scope.TUNE)
        can_end = job.state in (JobState.QUEUED, JobState.RUNNING)
        self._cancel.set_visibility(may and can_end)
        self._again.set_visibility(may and job.state.is_final and not has_found)
        if known.infeasible and not self._said.default_slot.children:
            with self._said:
                _say_infeasible(known.infeasible)

    async def _ask(self) -> None:
        question = "Stop after the running trial? Finished trials stay."
        if await confirm(question, yes="Cancel the job", no="Let it run"):
            await guarded(self._end)

    async def _end(self) -> None:
        job_id = self._job_id
        await self._visit.act(
            Scope.TUNE, lambda uow, caller: jobs.cancel(uow, job_id, caller=caller).state
        )


def _say_infeasible(found: Json) -> None:
    note(infeasible_text(found), "bad")
    ways = [r for r in found.get("relaxations", ()) if r.get("bound") is not None]
    for way in ways:
        note(f"{way['relaxed']} would do, not {way['constraint']}", "warn")


def _facts(job: TuningJobView) -> list[str]:
    spec = job.spec
    return [
        f"{job.trials_done} of {job.num_trials}",
        _time_left(job),
        str(spec.get("sla", words.NONE)),
        str(spec.get("workload", words.NONE)),
        str(spec.get("model_dir", words.NONE)),
        f"{spec.get('hardware', 'local')}, up to {spec.get('num_devices', '?')} devices",
        words.at(job.created_at),
        job.id,
    ]


def _time_left(job: TuningJobView) -> str:
    if job.finished_at is not None:
        begin = job.started_at or job.created_at
        return f"none: took {words.span((job.finished_at - begin).total_seconds())}"
    if job.started_at is None:
        return "waits for a worker"
    spent_s = (utc_now() - job.started_at).total_seconds()
    if not job.trials_done:
        return f"not known before the first trial ({words.span(spent_s)} so far)"
    if job.trials_done >= job.num_trials:
        return "the trials are done: the best is checked again"
    left_s = spent_s / job.trials_done * (job.num_trials - job.trials_done)
    return f"about {words.span(left_s)}, if trials take as long as so far"


def _none(known: Known) -> str:
    return "None." if known.job.state.is_final else "The first one is prepared: step times first."


def _columns(known: Known) -> list[tuple[str, str]]:
    return [
        ("number", "Trial"),
        ("settings", "Settings"),
        ("fidelity", "Fidelity"),
        *((c.key, f"{_named(c)}: measured (predicted, 90 %)") for c in known.bounds),
        ("chance", "P(SLA met)"),
        ("verdict", "Verdict"),
    ]


def _named(bound: Constraint) -> str:
    """p95 TTFT, ms."""
    return f"{bound.percentile} {bound.metric.removesuffix('_ms').upper()}, ms"


def _rows(known: Known) -> list[Row]:
    return [_row(record, known) for record in known.trials]


def _row(record: Json, known: Known) -> Row:
    chance = record.get("sla_probability")
    tone = "good" if record.get("is_feasible") else "warn"
    return {
        "key": record["number"],
        "number": str(record["number"]),
        "settings": words.settings_of(record["settings"]),
        "fidelity": str(record.get("fidelity") or words.NONE),
        **{c.key: _both(record, c.key) for c in known.bounds},
        "chance": words.NONE if chance is None else {"text": f"{chance:.2f}", "tone": tone},
        "verdict": str(record.get("reason") or words.NONE),
    }


def _both(record: Json, key: str) -> str:
    """Measured and, in brackets, predicted with its interval; a simulated trial has only that."""
    if record.get("fidelity") not in LIVE:
        return f"({_spread(_estimate(record, 'metrics', key))})"
    measured = words.number(_value(record, "metrics", key))
    return f"{measured} ({_spread(_estimate(record, 'predicted', key))})"


def _spread(found: Json) -> str:
    """A value, and between which it lies."""
    low, high = words.number(found.get("low")), words.number(found.get("high"))
    return f"{words.number(found.get('value'))}, {low} to {high}"


def _estimate(record: Json, part: str, key: str) -> Json:
    """What is known of a metric; empty where nothing is."""
    return (record.get(part) or {}).get(key) or {}


def _value(record: Json, part: str, key: str) -> float | None:
    return _estimate(record, part, key).get("value")


class _Pictures:
    """The Pareto front, which knobs mattered, and predicted against measured."""

    def __init__(self, known: Known) -> None:
        with ui.element("div").classes("grid2"):
            with card("Pareto front: devices against latency") as self._front_card:
                self._front = chart(_front(known), "devices against latency of each trial")
            with card("Which knobs mattered") as self._knobs_card:
                self._knobs = chart(_knobs(known), "share of variance by knob")
            with card("Predicted against measured") as self._truth_card:
                self._truth = chart(_truth(known), "predicted against measured")
        self._choose(known)

    def show(self, known: Known) -> None:
        for drawn, options in (
            (self._front, _front(known)),
            (self._knobs, _knobs(known)),
            (self._truth, _truth(known)),
        ):
            redraw(drawn, options)
        self._choose(known)

    def _choose(self, known: Known) -> None:
        """Places are kept for what comes a moment later, so that nothing jumps."""
        self._front_card.set_visibility(bool(known.trials and known.bounds))
        may_have_knobs = known.importance is None or bool(known.importance.knobs)
        self._knobs_card.set_visibility(bool(known.trials) and may_have_knobs)
        self._truth_card.set_visibility(bool(_pairs(known)))


def _front(known: Known) -> charts.Json:
    if known.pareto is None or not known.bounds:
        return charts.dots("devices", "ms", {}, none=NOT_YET)
    bound = known.bounds[0]
    front = {point.trial for point in known.pareto.front}
    groups: dict[str, list[tuple[float, float, str]]] = {"on the front": [], "beaten": []}
    for record in known.trials:
        value = _value(record, "metrics", bound.key)
        if value is not None:
            name = "on the front" if record["number"] in front else "beaten"
            text = words.settings_of(record["settings"])
            groups[name].append((words.devices_of(record["settings"]), value, text))
    return charts.dots("devices", _named(bound), groups, none=NOT_YET)


def _knobs(known: Known) -> charts.Json:
    found = known.importance.knobs if known.importance else []
    return charts.bars(
        "share of the variance of latency, 0 to 1",
        {knob.knob: knob.share for knob in found},
        none=NOT_YET,
    )


def _truth(known: Known) -> charts.Json:
    name = _named(known.bounds[0]) if known.bounds else "ms"
    return charts.predicted_against_measured(name, _pairs(known))


def _pairs(known: Known) -> list[tuple[Json, float, str]]:
    """Of live trials: what was predicted, what was measured, settings."""
    if not known.bounds:
        return []
    key = known.bounds[0].key
    found = []
    for record in known.trials:
        predicted, measured = _estimate(record, "predicted", key), _value(record, "metrics", key)
        if record.get("fidelity") in LIVE and predicted and measured is not None:
            found.append((predicted, measured, words.settings_of(record["settings"])))
    return found
