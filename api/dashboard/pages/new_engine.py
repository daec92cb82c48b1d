"""``/engines/new``: how an engine gets here, and looking at a server that runs already."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from nicegui import ui
from pydantic import ValidationError

from api.dashboard.layout import (
    Text,
    button,
    card,
    copied,
    frame,
    hinted,
    note,
    page_path,
    wrong_fields,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.observed import ObserveRequest
from api.services import observed
from api.web.auth import Caller
from api.web.errors import ApiError
from engine.spec.errors import EngineError
from policies.errors import PolicyInputError
from store import UnitOfWork

PATH, TITLE = "/engines/new", "Add an engine · Gearshift"
SERVE = "GEARSHIFT_CONTROL_KEY=KEY gearshift engine serve --model DIR --control {}"
SYSTEMS = {"vllm": "vLLM", "sglang": "SGLang"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of an observed server; an empty one is left out."""

    name: str
    label: str
    hint: str
    value: str = ""


FIELDS = (
    Field(name="name", label="Name", hint="What it is called here"),
    Field(name="url", label="Address", value="http://HOST:8000",
          hint="Without /metrics, which is read there"),
    Field(name="plan", label="Plan it runs", value="tp=1", hint="As tp=2 or dp=2,tp=4"),
    Field(name="model", label="Model", hint="What launch commands name, as ORG/NAME"),
    Field(name="max_num_seqs", label="Most sequences in a step",
          hint="As it was started; empty: the system's default"),
    Field(name="max_num_batched_tokens", label="Most tokens in a step",
          hint="As it was started; empty: the system's default"),
    Field(name="max_devices", label="Most devices", hint="Advice names no more; empty: any"),
    Field(name="sla", label="SLA", hint="As p95_ttft_ms<=500,p95_tpot_ms<=50; empty: none"),
)  # fmt: skip


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    with frame(request, visit, "Add an engine", back=("/", "fleet")):
        with card("An engine of Gearshift"):
            Text("p", "Start it where it can reach this service; it registers itself:")
            address = str(request.base_url).rstrip("/")
            copied(SERVE.format(address), "the command that starts an engine")
            Text("p", "KEY needs scope apply: gearshift keys create NAME --scope apply.", "soft")
        with card("A vLLM or SGLang server that runs already"):
            Text("p", "Its metrics are read, and it is told which plan its load needs. Nothing is "
                 "changed there.")  # fmt: skip
            if visit.may(Scope.APPLY):
                _Form(visit)
            else:
                note("This needs a key with scope 'apply'.", "warn")


class _Form:
    """The fields, and what is wrong with each."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.element("div").classes("fields"):
            self._system = ui.select(SYSTEMS, value="vllm", label="System")
            self._inputs = {
                field.name: hinted(ui.input(field.label, value=field.value), field.hint)
                for field in FIELDS
            }
        with ui.element("div").classes("row").style("margin-top:1rem"):
            button("Observe it", self._observe, "go")
        self._said = ui.element("div").props('aria-live="polite"')

    async def _observe(self) -> None:
        self._said.clear()
        for shown in self._inputs.values():
            shown.error = None
        texts = {name: str(shown.value or "").strip() for name, shown in self._inputs.items()}
        body = {name: _value(text) for name, text in texts.items() if text}
        try:
            asked = ObserveRequest.model_validate({"system": self._system.value, **body})
            engine_id = await self._visit.act(
                Scope.APPLY, lambda uow, caller: self._keep(uow, asked, caller)
            )
        except ValidationError as error:
            self._point(wrong_fields(error))
        except ApiError as error:
            if not error.errors:
                self._say(error.detail)
            self._point({one.pointer.lstrip("/"): one.detail for one in error.errors})
        except (EngineError, PolicyInputError) as error:
            self._say(str(error))
        else:
            ui.navigate.to(page_path("engines", engine_id))

    def _keep(self, uow: UnitOfWork, asked: ObserveRequest, caller: Caller) -> str:
        return observed.observe(uow, asked, self._visit.context.settings, caller=caller).id

    def _point(self, errors: dict[str, str]) -> None:
        for name, detail in errors.items():
            if name in self._inputs:
                self._inputs[name].error = detail
            else:
                self._say(detail)

    def _say(self, detail: str) -> None:
        with self._said:
            note(detail, "bad")


def _value(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
