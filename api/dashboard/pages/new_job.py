"""``/jobs/new``: a form that explains each field of a tuning job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from nicegui import ui
from pydantic import ValidationError

from api.dashboard.layout import Text, button, card, frame, hinted, note, page_path, wrong_fields
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.tuning import OnBusy, TuningJobCreate
from api.services import jobs
from api.web.auth import Caller
from api.web.errors import ApiError
from store import UnitOfWork
from store.paging import PageRequest
from tuner.described import catalog
from tuner.described.catalog import Listed

PATH, TITLE = "/jobs/new", "New tuning job · Gearshift"
MOST_CHOICES = 100
TABLE = "capacity_table"
# Fields that a job's specification keeps under another name.
KEPT_AS = {"model": "model_dir"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the job; an empty one is left out."""

    name: str
    label: str
    hint: str
    value: str = ""
    is_number: bool = False
    is_wide: bool = False


FIELDS = (
    Field(name="model", label="Model", value="llama-3.1-8b",
          hint="One of the list; for live trials a folder of GEARSHIFT_MODEL_ROOT"),
    Field(name="hardware", label="Hardware", value="2xh200",
          hint="8xh200: simulated; local: live trials on this machine"),
    Field(name="num_devices", label="Devices", value="2", is_number=True,
          hint="The most that a plan may use"),
    Field(name="workload", label="Workload", is_wide=True,
          value="poisson:rate=4,input=512,output=64,seconds=60",
          hint="The load: arrivals and lengths in tokens, or an uploaded trace"),
    Field(name="sla", label="SLA", is_wide=True, value="p95_ttft_ms<=500,p95_tpot_ms<=50",
          hint="What must hold: percentiles of TTFT, TPOT, ITL, E2E in ms; attainment>=0.99"),
    Field(name="trials", label="Trials", value="20", is_number=True,
          hint="Settings that are tried; more find better ones and take longer"),
    Field(name="seed", label="Seed", value="0", is_number=True,
          hint="Same seed in, same answer out"),
    Field(name="dtype", label="Number format", hint="As bf16 or fp8; empty: the checkpoint's"),
    Field(name="quantization", label="Quantisation",
          hint="On this machine, as layers load: int8 or w8a8; empty: as the checkpoint is"),
    Field(name="backend", label="Serving system",
          hint="On described hardware, one of the list; empty: vllm"),
    Field(name="cost_model_id", label="Cost model",
          hint="Of an earlier profile; empty: measured or looked up"),
    Field(name="on_busy", label="While devices are busy", value=OnBusy.SIMULATE.value,
          hint="simulate: answer without live trials; wait: until devices are free"),
)  # fmt: skip


async def show(request: Request, workload: str = "", like: str = "") -> None:
    """The page, for an uploaded ``workload`` or as an earlier job (``like``) was asked for."""
    visit = Visit.of(request)
    known = await visit.read(lambda uow: _read(uow, like))
    if workload:
        known.values["workload"] = workload
    with frame(request, visit, "New tuning job", back=("/jobs", "tuning jobs")):
        if not visit.may(Scope.TUNE):
            note("Starting a job needs a key with scope 'tune'; this one can only read.", "warn")
            return
        with card(), ui.element("form").props("onsubmit='return false'"):
            _Form(visit, known)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the form begins with, and what may be chosen for a field: its text, and what it is."""

    values: dict[str, str]
    choices: dict[str, list[tuple[str, str]]]
    options: dict[str, Any]


def _read(uow: UnitOfWork, like: str) -> _Known:
    job = uow.jobs.find(like) if like else None
    spec = {} if job is None else job.spec
    page = PageRequest(limit=MOST_CHOICES)
    choices = {
        "model": _names(catalog.catalog_models()),
        "hardware": [("local", "live trials on this machine"), *_nodes()],
        "backend": _names(catalog.catalog_backends()),
        "workload": [(w.id, w.name) for w in uow.workloads.list_page(page).items],
        "cost_model_id": [(c.id, c.fingerprint) for c in uow.cost_models.list_page(page).items],
        "on_busy": [(way.value, "") for way in OnBusy],
    }
    values = {
        field.name: str(spec[key])
        for field in FIELDS
        if spec.get(key := KEPT_AS.get(field.name, field.name)) is not None
    }
    return _Known(values=values, choices=choices, options=dict(spec.get("options") or {}))


def _names(listed: Sequence[Listed]) -> list[tuple[str, str]]:
    return [(found.name, "") for found in listed if found.error is None]


def _nodes() -> list[tuple[str, str]]:
    """Eight of each device: what nodes have."""
    return [(f"8x{name}", "") for name, _ in _names(catalog.catalog_hardware())]


class _Form:
    """The fields, and what the service says of each."""

    def __init__(self, visit: Visit, known: _Known) -> None:
        self._visit = visit
        self._is_sent = False
        with ui.element("div").classes("fields"):
            self._inputs = {field: _input(field, known) for field in FIELDS}
        self._options = known.options
        self._table = ui.checkbox("Capacity table", value=bool(known.options.get(TABLE)))
        Text(
            "p",
            "Also find what rate each plan carries within the SLA: what a controller needs that "
            "adds and drains replicas. Takes some ten times as long; where trials run live, each "
            "plan of it is also driven for a minute.",
            "soft",
        )
        with ui.element("div").classes("row").style("margin-top:1rem"):
            button("Start the job", self._start, "go")

    async def _start(self) -> None:
        if self._is_sent:  # two presses are one job
            return
        for shown in self._inputs.values():
            shown.error = None
        self._is_sent = True
        job_id = None
        try:
            body = TuningJobCreate.model_validate(self._body())
            job_id = await self._visit.act(Scope.TUNE, lambda uow, by: self._create(uow, by, body))
        except ValidationError as error:
            self._point(wrong_fields(error))
        except ApiError as error:
            if not self._point({e.pointer.lstrip("/"): e.detail for e in error.errors}):
                raise
        finally:
            self._is_sent = job_id is not None
        if job_id is not None:
            ui.navigate.to(page_path("jobs", job_id))

    def _create(self, uow: UnitOfWork, caller: Caller, body: TuningJobCreate) -> str:
        return jobs.create(uow, body, self._visit.context.settings, caller=caller).id

    def _point(self, errors: dict[str, str]) -> bool:
        """Say at each field what is wrong with it; whether every error has a field."""
        names = {"model_dir": "model", "workload_id": "workload"}
        by_name = {field.name: shown for field, shown in self._inputs.items()}
        wrong = {names.get(name, name): detail for name, detail in errors.items()}
        for name, detail in wrong.items():
            if name in by_name:
                by_name[name].error = detail
        return bool(wrong) and wrong.keys() <= by_name.keys()

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {}
        for field, shown in self._inputs.items():
            text = str(shown.value or "").strip()
            if text:
                body[field.name] = int(text) if field.is_number and text.isdecimal() else text
        options = {name: value for name, value in self._options.items() if name != TABLE}
        if self._table.value:
            options[TABLE] = True
        if options:
            body["options"] = options
        return body


def _input(field: Field, known: _Known) -> ui.input:
    """A text that may be anything, and a list of what there is."""
    shown = ui.input(field.label, value=known.values.get(field.name, field.value))
    hinted(shown, field.hint).classes("wide" if field.is_wide else "")
    choices = known.choices.get(field.name)
    if choices:
        list_id = f"choices-{field.name}"
        shown.props('autocomplete="off"').props["list"] = list_id
        with ui.element("datalist") as listed:
            listed.props["id"] = list_id
            for text, about in choices:
                option = ui.element("option")
                option.props["value"] = text
                if about:
                    option.props["label"] = about
    return shown
