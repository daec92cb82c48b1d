"""``/what-if``: a model on hardware that is not here, at a glance and simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from api.dashboard import charts, words
from api.dashboard.layout import (
    Text,
    button,
    card,
    chart,
    facts,
    frame,
    guarded,
    note,
    redraw,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.services import what_if
from api.services.what_if import Glance, WhatIf
from api.web.errors import as_api_error
from tuner.described import catalog

PATH, TITLE = "/what-if", "What if · Gearshift"
START = WhatIf(
    model="llama-3.1-70b",
    hardware="8xh200",
    plan="tp=8",
    rate_rps=4,
    input_tokens=1000,
    output_tokens=200,
    sla="p95_ttft_ms<=1000,p95_tpot_ms<=50",
)
FACTS = (
    "TTFT, alone",
    "TPOT at this load",
    "Requests running",
    "KV cache",
)
METRICS = (("ttft_ms", "TTFT, ms"), ("tpot_ms", "TPOT, ms"), ("e2e_ms", "E2E, ms"))
PERCENTILES = ("mean", "p50", "p95", "p99")
Json = dict[str, Any]


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    models, backends = await run_in_threadpool(_names)
    with frame(request, visit, "What if"):
        Text(
            "p",
            "A model on hardware that is described, not here. The glance follows as you change it; "
            "a simulation runs the whole scheduler.",
        )
        page = _Page(visit, models, backends)
    await page.look()


def _names() -> tuple[list[str], list[str]]:
    return (
        [found.name for found in catalog.catalog_models()],
        [found.name for found in catalog.catalog_backends()],
    )


class _Page:
    """The question, the glance at it, and the last simulation."""

    def __init__(self, visit: Visit, models: list[str], backends: list[str]) -> None:
        self._visit = visit
        with card("Question"), ui.element("div").classes("fields"):
            self._model = ui.select(models, value=START.model, label="Model")
            self._hardware = ui.input("Hardware", value=START.hardware)
            self._hardware.props('hint="As in 8xh200 or 2xl40s"')
            self._plan = ui.input("Plan", value=START.plan)
            self._plan.props('hint="As tp=8 or sp=4,tp=2,shift"')
            self._backend = ui.select(backends, value="vllm", label="Serving system")
            self._sla = ui.input("SLA", value=START.sla).classes("wide")
            self._rate = _slider("Requests/s", START.rate_rps, 0.5, 100, 0.5)
            self._input = _slider("Input, tokens", START.input_tokens, 50, 16_000, 50)
            self._output = _slider("Output, tokens", START.output_tokens, 10, 4_000, 10)
        with card("At a glance, from step times alone"):
            self._said = ui.element("div").props('aria-live="polite"')
            self._change = facts([(name, "") for name in FACTS])
            self._chart = chart(
                charts.step_times({}, {}), "step time of each mode, in ms, by requests in a step"
            )
        with card("Simulated"):
            self._run = button("Simulate a minute of it", self._simulate, "go")
            self._answer = ui.element("div").props('aria-live="polite"')
        for shown in (self._model, self._hardware, self._plan, self._backend, self._sla,
                      self._rate, self._input, self._output):  # fmt: skip
            # A slider tells every pixel; a text every letter.
            shown.on("update:model-value", self.look, throttle=0.3, leading_events=False)

    async def look(self) -> None:
        """Answer at a glance."""
        await self._visit.caller(Scope.READ)
        self._said.clear()
        try:
            found = await run_in_threadpool(what_if.glance, self._asked())
        except Exception as error:
            refusal = as_api_error(error)
            details = [f"{e.pointer.lstrip('/')}: {e.detail}" for e in refusal.errors]
            with self._said:
                note("; ".join(details) or refusal.detail, "bad")
            return
        self._change(_facts(found))
        if found.running is None:
            with self._said:
                note("Requests come faster than they are served: the queue would grow.", "bad")
        redraw(self._chart, _steps(found.decode_ms))

    async def _simulate(self) -> None:
        await self._visit.caller(Scope.READ)
        self._answer.clear()
        with self._answer:
            Text("p", "Simulating ...", "soft")
        document = None
        self._run.props("disabled")

        async def run() -> None:
            nonlocal document
            document = await what_if.simulate(self._asked(), self._visit.context.aside)

        try:
            await guarded(run)
        finally:
            self._run.props(remove="disabled")
            self._answer.clear()
        if document is not None:
            with self._answer:
                _show(document)

    def _asked(self) -> WhatIf:
        return WhatIf(
            model=str(self._model.value),
            hardware=str(self._hardware.value),
            plan=str(self._plan.value),
            backend=str(self._backend.value),
            sla=str(self._sla.value),
            rate_rps=float(self._rate.value),
            input_tokens=int(self._input.value),
            output_tokens=int(self._output.value),
        )


def _slider(label: str, value: float, least: float, most: float, step: float) -> ui.slider:
    """A slider under its name, which shows the value."""
    with ui.element("div"):
        shown = Text("div", "", "soft")
        slider = ui.slider(min=least, max=most, step=step, value=value)
        slider.props(f'aria-label="{label}"')

    def tell() -> None:
        shown.set_text(f"{label}: {slider.value:g}")

    slider.on_value_change(tell)
    tell()
    return slider


def _facts(found: Glance) -> list[str]:
    unknown = "grows without end"
    return [
        f"{found.ttft_ms:.1f} ms",
        unknown if found.tpot_ms is None else f"{found.tpot_ms:.1f} ms",
        unknown if found.running is None else f"{found.running:.1f}",
        f"{found.kv_tokens:,} tokens",
    ]


def _steps(decode_ms: Mapping[str, list[tuple[int, float]]]) -> charts.Json:
    options = charts.step_times(decode_ms, {})
    options["xAxis"]["name"] = "requests decoded in a step"
    return options


def _show(document: Json) -> None:
    sla = document.get("sla") or {}
    if "is_met" in sla:
        note("The SLA is met." if sla["is_met"] else "The SLA is missed.",
             "good" if sla["is_met"] else "bad")  # fmt: skip
    rows = [
        {"key": key, "metric": name, **{p: words.number(values.get(p)) for p in PERCENTILES}}
        for key, name in METRICS
        if isinstance(values := document["metrics"].get(key), dict)
    ]
    table([("metric", "Metric"), *((p, p) for p in PERCENTILES)], rows)
    for warning in document.get("warnings", ()):
        note(str(warning), "warn")
    Text("p", str(document.get("title", "")), "soft")
