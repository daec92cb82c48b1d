"""The editor of an engine's policy: what would change is shown before anything does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nicegui import ui

from api.dashboard.layout import Text, button, hinted, note
from api.dashboard.proposal import Proposal, read_policy, text_of
from api.dashboard.visit import Visit
from api.documents.server_knobs import RESTARTED
from api.schemas.access import Scope
from api.schemas.serving import EngineView, PolicyView
from engine.spec.plan import parse_plan
from engine.spec.settings import Order
from tuner.launch.why_not import why_not

Json = dict[str, Any]
NO_RESTART = (
    "Plan and caps are what the server was started with, and this service cannot restart it. "
    "Restart it yourself, as its advice says, and observe it again with what it runs then; or name "
    "a hook for it in GEARSHIFT_SERVERS_FILE."
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One knob: where it stands in the document, and what it means."""

    path: tuple[str, ...]
    label: str
    hint: str
    is_number: bool = True
    begins: str = ""  # the group of fields that it is the first of


PROMISE = "Promise and admission"
FIELDS = (
    Field(path=("shift", "threshold_tokens"), label="Shift threshold (tokens)", begins="Steps",
          hint="Steps with at most so many tokens run in shift mode"),
    Field(path=("caps", "max_num_seqs"), label="Most sequences in a step",
          hint="A lower one takes effect as requests finish"),
    Field(path=("caps", "max_num_batched_tokens"), label="Most tokens in a step",
          hint="Larger: prompts finish sooner, tokens come slower"),
    Field(path=("caps", "max_step_ms"), label="Longest step (ms)",
          hint="Prompts are cut to fit it; empty: no limit"),
    Field(path=("mode",), label="Mode", is_number=False,
          hint="auto: by threshold; table: as timed; or one mode, as base, shift, 4x2"),
    Field(path=("scheduler", "order"), label="Order", is_number=False,
          hint=f"Who is served first: {', '.join(Order)}"),
    Field(path=("plan", "dp"), label="DP degree", hint="Replicas; added and drained in service",
          begins="Plan: how the devices share the work"),
    Field(path=("plan", "pp"), label="PP degree", hint="Pipeline stages; ranks restart"),
    Field(path=("plan", "sp"), label="SP degree", hint="Sequence parallel; ranks restart"),
    Field(path=("plan", "tp"), label="TP degree", hint="Tensor parallel; ranks restart"),
    Field(path=("caps", "max_queue"), label="Most waiting requests", begins=PROMISE,
          hint="Beyond it requests are refused; empty: no limit"),
    Field(path=("admission", "rate_rps"), label="Most requests a second let in",
          hint="Beyond it callers are told to come back; empty: no limit"),
    Field(path=("sla",), label="SLA", is_number=False,
          hint="As p95_ttft_ms<=500, attainment>=0.99; empty: none"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The fields that an engine has knobs for, and a sentence on those that it lacks."""

    fields: tuple[Field, ...] = FIELDS
    note: str = ""

    @classmethod
    def of(cls, engine: EngineView, *, is_restarted: bool = False) -> Offer:
        """All knobs of an engine of ours; of an observed server's those that it may be started
        with, and these only where it ``is_restarted`` by the service."""
        if engine.system is None:
            return cls()
        found = _server_fields(engine.system) if is_restarted else ()
        kept = (*found, *(field for field in FIELDS if field.path == ("sla",)))
        return cls(fields=_headed(kept), note="" if is_restarted else NO_RESTART)


def _server_fields(system: str) -> tuple[Field, ...]:
    """Words of its command, which take a restart."""
    found = []
    for field in FIELDS:
        is_degree = field.path[0] == "plan"
        if not is_degree and ".".join(field.path) not in RESTARTED:
            continue
        if is_degree and why_not(system, parse_plan(f"{field.path[1]}=2").plan) is not None:
            continue
        found.append(replace(field, hint="The server is restarted with it"))
    return tuple(found)


def _headed(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The same, each group under its heading although its first field may be left out."""
    heading = {}
    last = ""
    for field in FIELDS:
        last = field.begins or last
        heading[field.path] = last
    found, said = [], ""
    has_admission = any(field.path[0] == "admission" for field in fields)
    for field in fields:
        name = heading[field.path]
        if name == PROMISE and not has_admission:
            name = "Promise"
        found.append(replace(field, begins="" if name == said else name))
        said = name
    return tuple(found)


class PolicyEditor:
    """A form over the policy asked for. Writing needs scope ``apply``, here and at the service."""

    def __init__(self, visit: Visit, policy: PolicyView, offer: Offer) -> None:
        self._visit = visit
        self._offer = offer
        self._engine_id = policy.engine_id
        self._policy = policy
        self._inputs: dict[Field, ui.input] = {}
        self._build()

    def _build(self) -> None:
        may = self._visit.may(Scope.APPLY)
        self._about = Text("p", self._told(), "soft")
        if not may:
            note("This key has no scope 'apply': the policy can be read, not changed.")
        if self._offer.note:
            note(self._offer.note)
        with ui.element("div").classes("fields"):
            for field in self._offer.fields:
                if field.begins:
                    Text("h3", field.begins)
                shown = hinted(ui.input(field.label, value=self._shown(field)), field.hint)
                shown.classes("wide" if field.path == ("sla",) else "")
                shown.props("readonly" if not may else "")
                self._inputs[field] = shown
        if not may:
            return
        self._why = ui.input("Why (for the audit)", value="changed by hand").classes("w-full")
        with ui.element("div").classes("row").style("margin-top:1rem"):
            button("Show what would change", self._preview, "go")
            button("Undo my edits", self.load)
        self._proposal = Proposal(
            self._visit, self._engine_id, done=self.load, stale=self._offer_newest
        )

    async def load(self) -> None:
        """Take the newest version into the form; edits are lost."""
        self._policy = await self._visit.read(lambda uow: read_policy(uow, self._engine_id))
        for field, shown in self._inputs.items():
            shown.value = self._shown(field)
        self._about.set_text(self._told())
        if self._visit.may(Scope.APPLY):
            self._proposal.clear()

    def note_version(self, version: int) -> None:
        """Say so when another version than the one in the form is asked for now."""
        if version != self._policy.version:
            self._about.set_text(
                f"{self._told()} It has changed meanwhile: version {version} is asked for now."
            )

    def _told(self) -> str:
        return f"You see version {self._policy.version}."

    def _shown(self, field: Field) -> str:
        return _text(_find(self._policy.requested, field.path))

    async def _preview(self) -> None:
        await self._proposal.show(self._policy, self._patch(), str(self._why.value))

    def _offer_newest(self) -> None:
        """The ways on when somebody else was quicker."""
        with ui.element("div").classes("row"):
            button("Put my edits on the newest version", self._rebase, "go")
            button("Take the newest version", self.load)

    async def _rebase(self) -> None:
        """Keep what was edited; all else is as in the newest version."""
        patch = self._patch()
        edited = {f: s.value for f, s in self._inputs.items() if _find(patch, f.path) is not _LEFT}
        await self.load()
        for field, value in edited.items():
            self._inputs[field].value = value
        await self._preview()

    def _patch(self) -> Json:
        """A merge patch of the fields that were edited."""
        patch: Json = {}
        for field, shown in self._inputs.items():
            before = _find(self._policy.requested, field.path)
            if (text := str(shown.value).strip()) != _text(before):
                _put(patch, field.path, _value(field, text))
        return patch


_LEFT = object()


def _find(document: Json, path: tuple[str, ...]) -> Any:
    found: Any = document
    for name in path:
        if not isinstance(found, dict) or name not in found:
            return _LEFT
        found = found[name]
    return found


def _put(patch: Json, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        patch = patch.setdefault(name, {})
    patch[path[-1]] = value


def _text(value: Any) -> str:
    """A value as the form shows it."""
    return "" if value is _LEFT else text_of(value)


def _value(field: Field, text: str) -> Any:
    """What a text of the form stands for; what is no number goes as it is and is refused."""
    if not text:
        return None
    if not field.is_number:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number
