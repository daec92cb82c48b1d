"""``/recommendations/ID``: the answer, why it is that, how to start it, and applying it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.capacity import CapacityCurve, show_capacity_table
from api.dashboard.layout import (
    Row,
    Text,
    button,
    card,
    confirm,
    copied,
    empty,
    facts,
    frame,
    guarded,
    missing,
    note,
    page_path,
    table,
)
from api.dashboard.proposal import show_changes, show_effect, tell_version
from api.dashboard.rollout_start import can_roll_out, start_rollout
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.serving import ChangeSet, EngineView
from api.schemas.tuning import RecommendationView
from api.services import engines, recommendations
from api.web.auth import Caller
from policies.errors import PolicyInputError
from policies.sla import Sla
from store import NotFoundError, UnitOfWork
from store.paging import PageRequest

PATH, TITLE = "/recommendations/{recommendation_id}", "Recommendation · Gearshift"
METRICS = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
PERCENTILES = ("mean", "p50", "p90", "p95", "p99")
MOST_ENGINES, MOST_MISSES = 500, 5
ANSWERS = (
    ("name", "Answer"), ("settings", "Settings"), ("devices", "Devices"), ("chance", "P(SLA met)"),
)  # fmt: skip
BOUNDED = (
    ("what", "Bound"), ("asked", "The SLA asks"), ("by", "Known by"), ("value", "Value"),
    ("range", "90 % interval"),
)  # fmt: skip
SYSTEMS = {
    "arctic": "Arctic Inference (vLLM plug-in)",
    "gearshift": "Gearshift",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "vllm": "vLLM",
}
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of an answer; its job may be gone."""

    found: RecommendationView
    alternatives: dict[str, Json]
    near_misses: list[Json]
    engines: list[EngineView]
    spec: Json | None

    @property
    def answer(self) -> Json | None:
        return self.found.recommendation

    @property
    def is_also(self) -> list[str]:
        """By which other aims the answer is the best, too."""
        own = (self.answer or {}).get("settings")
        return [name for name, one in self.alternatives.items() if one["settings"] == own]


async def show(request: Request, recommendation_id: str) -> None:
    """The page."""
    visit = Visit.of(request)
    try:
        known = await visit.read(lambda uow: _read(uow, visit, recommendation_id))
    except NotFoundError as error:
        missing(request, visit, str(error), back=("/jobs", "tuning jobs"))
        return
    job_id = known.found.job_id
    back = ("/jobs", "tuning jobs") if job_id is None else (page_path("jobs", job_id), "its job")
    of = "" if known.spec is None else f": {words.job_title(known.spec)}"
    with frame(request, visit, f"Recommendation{of}", back=back):
        if not known.answer:
            with card():
                empty("No plan met the SLA.", "The job's page tells the nearest miss.")
            return
        _say(known, known.answer)
        _numbers(known.answer, _bounded(known.found.sla))
        with card("Apply to a running engine"):
            _Apply(visit, known)
        with card("What load it carries"):
            show_capacity_table(known.answer.get("capacity_table"))
            CapacityCurve(visit, known.spec, known.answer["settings"])
        _alternatives(known)
        _near_misses(known.near_misses)
        _bands(known.found.schedule)
        _commands(known.answer)


def _read(uow: UnitOfWork, visit: Visit, recommendation_id: str) -> Known:
    row = uow.recommendations.get(recommendation_id)
    job = None if row.job_id is None else uow.jobs.find(row.job_id)
    report = (job.report if job is not None else None) or {}
    page = uow.engines.list_page(PageRequest(limit=MOST_ENGINES))
    return Known(
        found=RecommendationView.model_validate(row),
        alternatives=report.get("alternatives") or {},
        near_misses=_nearest(report.get("trials") or ()),
        engines=[engines.view(one, visit.context.settings) for one in page.items],
        spec=None if job is None else job.spec,
    )


def _nearest(trials: Iterable[Json]) -> list[Json]:
    """Trials that miss the SLA, the likeliest to meet it first."""
    missed = [t for t in trials if not t.get("is_feasible") and t.get("sla_probability")]
    return sorted(missed, key=lambda t: -t["sla_probability"])[:MOST_MISSES]


def _say(known: Known, answer: Json) -> None:
    found, chance = known.found, answer.get("sla_probability")
    with card("The answer"):
        Text("p", words.settings_of(answer["settings"])).style("font-size:1.2rem;font-weight:700")
        for sentence in (answer.get("why"), answer.get("explanation")):
            if sentence:
                Text("p", str(sentence))
        if known.is_also:
            Text("p", f"It is the {' and the '.join(known.is_also)} answer, too.", "soft")
        facts(
            [
                ("P(SLA met)", words.NONE if chance is None else f"{chance:.2f}"),
                ("Devices", str(answer.get("num_devices", words.NONE))),
                ("Chosen as", str(answer.get("reason", words.NONE)).replace("_", " ")),
                ("Known by", str(answer.get("fidelity", words.NONE))),
                ("For the load", str((known.spec or {}).get("workload", words.NONE))),
                ("Within the SLA", found.sla),
            ]
        )
        for warning in found.warnings:
            note(str(warning), "warn")


def _numbers(answer: Json, bounded: dict[str, str]) -> None:
    """Predicted beside measured, and the intervals of what the SLA bounds."""
    predicted, measured = answer.get("predicted") or {}, answer.get("measured") or {}
    columns = [("metric", "Latency, ms"), *((p, p) for p in PERCENTILES)]
    rows: list[Row] = []
    for metric in METRICS:
        for kind, metrics in (("predicted", predicted), ("measured", measured)):
            values = metrics.get(metric)
            if isinstance(values, dict):
                name = metric.removesuffix("_ms").upper()
                row = {p: words.number(values.get(p)) for p in PERCENTILES}
                rows.append({"key": f"{kind} {metric}", "metric": f"{name}, {kind}", **row})
    with card("Predicted and measured"):
        table(columns, rows)
        _intervals(answer.get("interval") or {}, bounded)


def _bounded(sla: str) -> dict[str, str]:
    """What the SLA bounds, and how; none where it cannot be read any more."""
    try:
        return {c.key: str(c).removeprefix(c.key) for c in Sla.parse(sla).constraints}
    except PolicyInputError:
        return {}


def _intervals(found: Json, bounded: dict[str, str]) -> None:
    rows = [
        {
            "key": f"{fidelity} {key}",
            "what": key,
            "by": fidelity,
            "asked": bounded[key],
            "value": words.number(estimate.get("value"), 2),
            "range": f"{words.number(estimate.get('low'), 2)} to "
            f"{words.number(estimate.get('high'), 2)}",
        }
        for fidelity, metrics in found.items()
        for key, estimate in metrics.items()
        if key in bounded
    ]
    if rows:
        Text("h3", "What the SLA bounds")
        order = list(bounded)
        table(BOUNDED, sorted(rows, key=lambda row: order.index(row["what"])))


def _alternatives(known: Known) -> None:
    """What is best by other aims, where that is not what is recommended."""
    others = [name for name in known.alternatives if name not in known.is_also]
    if others:
        with card("Other answers"):
            table(ANSWERS, [_answer(name, known.alternatives[name]) for name in others])


def _near_misses(found: list[Json]) -> None:
    if found:
        with card("Near misses"):
            Text("p", "Tried, and too likely to miss the SLA.", "soft")
            table(ANSWERS, [_answer(f"trial {one['number']}", one) for one in found])


def _answer(name: str, one: Json) -> Row:
    return {
        "key": name,
        "name": name,
        "settings": words.settings_of(one["settings"]),
        "devices": str(words.devices_of(one["settings"])),
        "chance": words.number(one.get("sla_probability"), 2),
    }


def _bands(schedule: Json | None) -> None:
    """What the controller follows once it is applied."""
    if not schedule:
        return
    rows = [
        {
            "key": index,
            "rate": _rates(band),
            "lengths": f"{words.number(band['mean_input_tokens'], 0)} in, "
            f"{words.number(band['mean_output_tokens'], 0)} out",
            "settings": words.settings_of(band["settings"]),
            "headroom": words.share(band.get("headroom")),
        }
        for index, band in enumerate(schedule["bands"])
    ]
    with card("Schedule: the settings for each load"):
        table(
            (
                ("rate", "Requests/s"),
                ("lengths", "Mean tokens"),
                ("settings", "Settings"),
                ("headroom", "Headroom to the tightest bound"),
            ),
            rows,
        )


def _rates(band: Json) -> str:
    low, high = words.number(band["rate_rps_low"]), band["rate_rps_high"]
    return f"{low} and more" if high is None else f"{low} to {words.number(high)}"


def _commands(answer: Json) -> None:
    commands = answer.get("launch") or []
    if not commands:
        return
    with card("Commands that start it"):
        for command in commands:
            Text("h3", SYSTEMS.get(command["system"], command["system"]))
            notes = [text for text in (command.get("versions"), command.get("note")) if text]
            if notes:
                Text("p", "; ".join(notes), "soft")
            if command.get("command") is not None:
                copied(command["command"], f"the command for {command['system']}")
            config = command.get("config")
            if config and config.get("is_needed"):
                Text("p", config["name"], "soft")
                copied(config["text"], config["name"])


class _Apply:
    """Choose an engine, see what would change, and only then apply."""

    def __init__(self, visit: Visit, known: Known) -> None:
        self._visit = visit
        self._id = known.found.id
        self._names = {engine.id: engine.name for engine in known.engines if engine.is_alive}
        if not visit.may(Scope.APPLY):
            note("Applying needs a key with scope 'apply'; this one cannot.")
            return
        if not self._names:
            empty("No engine is running.", "Start one by a command below, with --control.")
            return
        self._engine = ui.select(self._names, label="Engine")
        self._engine.value = next(iter(self._names))
        self._engine.classes("w-full").style("max-width:30rem")
        button("Show what would change", self._preview, "go")
        self._answer = ui.element("div").props('aria-live="polite"')

    async def _preview(self) -> None:
        engine_id, visit, own_id = self._engine.value, self._visit, self._id
        answer = await self._ask(engine_id, is_dry_run=True)
        self._answer.clear()
        with self._answer:
            show_changes(answer)
            place = ui.element("div")
            with ui.element("div").classes("row"):
                button("Apply", lambda: self._confirm(engine_id), "go")
                if can_roll_out(answer):
                    candidate = {"recommendation_id": own_id}
                    button(
                        "Prove it first ...",
                        lambda: start_rollout(visit, engine_id, reason="", candidate=candidate),
                    )
        await show_effect(
            visit,
            place,
            answer,
            engine_id,
            lambda uow, _: recommendations.settings_of(uow, own_id),
        )

    async def _confirm(self, engine_id: str) -> None:
        name = self._names[engine_id]
        question = f"Apply this recommendation to {name}, and let the controller follow it?"
        if await confirm(question, yes="Yes, apply", no="No", kind="go"):
            await guarded(lambda: self._apply(engine_id))

    async def _apply(self, engine_id: str) -> None:
        answer = await self._ask(engine_id, is_dry_run=False)
        self._answer.clear()
        with self._answer:
            tell_version(answer)
            ui.link("See the engine", page_path("engines", engine_id))

    async def _ask(self, engine_id: str, *, is_dry_run: bool) -> ChangeSet:
        def apply(uow: UnitOfWork, caller: Caller) -> ChangeSet:
            return recommendations.apply(
                uow,
                self._id,
                engine_id,
                caller=caller,
                reason="applied in the dashboard",
                is_dry_run=is_dry_run,
            )

        return await self._visit.act(Scope.APPLY, apply)
