"""``/what-if``: a model on hardware that is not here, at a glance and simulated."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from nicegui import ui
from nicegui.events import GenericEventArguments
from starlette.concurrency import run_in_threadpool

from api.dashboard import charts, words
from api.dashboard.layout import (
    Text,
    allow,
    button,
    card,
    chart,
    facts,
    frame,
    guarded,
    note,
    redraw,
    table,
    told_of,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.services import what_if
from api.services.what_if import Glance, WhatIf
from api.web.errors import as_api_error
from tuner.described import catalog
from tuner.described.catalog import Listed

PATH, TITLE = "/what-if", "What if · Gearshift"
MODEL, DEVICE, BACKEND = "llama-3.1-70b", "h200", "vllm"
# How many devices each place of their slider stands for.
DEVICES = (1, 2, 4, 8, 16, 32)
FACTS = (
    "TTFT, alone",
    "TPOT at this load",
    "Requests running",
    "KV cache",
)
METRICS = (("ttft_ms", "TTFT, ms"), ("tpot_ms", "TPOT, ms"), ("e2e_ms", "E2E, ms"))
PERCENTILES = ("mean", "p50", "p95", "p99")
EMIT_VALUE = "event => emit(event.target.value)"
Json = dict[str, Any]


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    names = await run_in_threadpool(_names)
    with frame(request, visit, "What if"):
        Text(
            "p",
            "A model on hardware that you do not have here. The estimate follows what you change; "
            "a simulation runs the whole scheduler.",
        )
        page = _Page(visit, names)
    await page.look()


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What there is to choose from."""

    models: list[str]
    devices: list[str]
    backends: list[str]


def _names() -> _Names:
    def known(listed: Sequence[Listed]) -> list[str]:
        return [found.name for found in listed if found.error is None]

    return _Names(
        models=known(catalog.catalog_models()),
        devices=known(catalog.catalog_hardware()),
        backends=known(catalog.catalog_backends()),
    )


class _Page:
    """The question, the glance at it, and the last simulation."""

    def __init__(self, visit: Visit, names: _Names) -> None:
        self._visit = visit
        with card("Question"), ui.element("div").classes("fields"):
            self._build(names)
        with card("At a glance, from step times alone"):
            self._said = ui.element("div").props('aria-live="polite"')
            self._change = facts([(name, "") for name in FACTS])
            self._chart = chart(
                charts.step_times({}, {}), "step time of each mode, in ms, by requests in a step"
            )
        with card("Simulated"):
            self._run = button("Simulate a minute of it", self._simulate, "go")
            self._answer = ui.element("div").props('aria-live="polite"')
        for slider in (self._ttft, self._tpot, self._rate, self._input, self._output):
            slider.on_move(self.look)
        self._devices.on_move(self._follow)
        for shown in (self._model, self._device, self._plan, self._backend):
            # A text tells every letter.
            shown.on("update:model-value", self.look, throttle=0.3, leading_events=False)

    def _build(self, names: _Names) -> None:
        self._model = ui.select(names.models, value=MODEL, label="Model", with_input=True)
        self._model.props('hint="One of the list; bf16, unless it is published otherwise"')
        self._device = ui.select(
            names.devices, value=DEVICE, label="Device", with_input=True, new_value_mode="add"
        )
        self._device.props('hint="Or your own words, as h200@pcie5; 8xh200: nodes of eight"')
        self._devices = _Slider(
            "Devices",
            DEVICES.index(8),
            least=0,
            most=len(DEVICES) - 1,
            step=1,
            text_of=lambda place: str(DEVICES[int(place)]),
        )
        self._plan = ui.input("Plan", value="tp=8")
        self._plan.props('hint="As tp=8 or sp=4,tp=2,shift"')
        self._backend = ui.select(names.backends, value=BACKEND, label="Serving system")
        self._backend.props('hint="Whose scheduler and defaults are simulated"')
        self._rate = _Slider("Requests/s", 4, least=0.5, most=100, step=0.5)
        self._input = _Slider("Input, tokens", 1000, least=50, most=16_000, step=50)
        self._output = _Slider("Output, tokens", 200, least=10, most=4_000, step=10)
        self._ttft = _Slider("SLA: p95 TTFT, ms, at most", 1000, least=50, most=5_000, step=50)
        self._tpot = _Slider("SLA: p95 TPOT, ms, at most", 50, least=5, most=200, step=1)

    async def _follow(self) -> None:
        """Keep a plan that is tensor parallel over all devices so, over as many as there are."""
        if re.fullmatch(r"tp=\d+", str(self._plan.value).strip()):
            self._plan.value = f"tp={self._num_devices}"
        await self.look()

    @property
    def _num_devices(self) -> int:
        return DEVICES[int(self._devices.value)]

    async def look(self) -> None:
        """Answer at a glance."""
        await self._visit.caller(Scope.READ)
        asked = self._asked()
        try:
            found = await run_in_threadpool(what_if.glance, asked)
        except Exception as error:
            self._tell(told_of(as_api_error(error)), "bad")
            return
        self._change(_facts(found))
        self._tell(*_verdict(found, float(self._ttft.value), float(self._tpot.value)))
        redraw(self._chart, _steps(found.decode_ms))

    def _tell(self, text: str, tone: str) -> None:
        self._said.clear()
        with self._said:
            note(text, tone)

    async def _simulate(self) -> None:
        await self._visit.caller(Scope.READ)
        self._answer.clear()
        with self._answer:
            Text("p", "Simulating ...", "soft")
        document = None
        allow(self._run, False)

        async def run() -> None:
            nonlocal document
            document = await what_if.simulate(self._asked(), self._visit.context.aside)

        try:
            await guarded(run)
        finally:
            allow(self._run, True)
            self._answer.clear()
        if document is not None:
            with self._answer:
                _show(document)

    def _asked(self) -> WhatIf:
        return WhatIf(
            model=str(self._model.value),
            hardware=f"{self._num_devices}x{self._device.value}",
            plan=str(self._plan.value),
            backend=str(self._backend.value),
            sla=f"p95_ttft_ms<={self._ttft.value:g},p95_tpot_ms<={self._tpot.value:g}",
            rate_rps=float(self._rate.value),
            input_tokens=int(self._input.value),
            output_tokens=int(self._output.value),
        )


class _Slider:
    """A native slider under its name, which shows the value; any keyboard moves it."""

    def __init__(
        self,
        label: str,
        value: float,
        *,
        least: float,
        most: float,
        step: float,
        text_of: Callable[[float], str] = "{:g}".format,
    ) -> None:
        self.value = value
        self._least, self._most = least, most
        self._label = label
        self._text_of = text_of
        with ui.element("div").classes("slide"):
            self._shown = Text("div", "", "soft")
            self._input = ui.element("input").props('type="range"')
        # Its value is the browser's own from then on, or each answer would move it back.
        numbers = {"min": least, "max": most, "step": step, "defaultValue": value}
        self._input.props.update(
            {"aria-label": label, **{name: f"{number:g}" for name, number in numbers.items()}}
        )
        self._tell()

    def on_move(self, act: Callable[[], Awaitable[None] | None]) -> None:
        """Call ``act`` when it has moved; it tells every pixel."""

        async def move(event: GenericEventArguments) -> None:
            value = float(event.args)
            if self._least <= value <= self._most:
                self.value = value
                self._tell()
                await guarded(act)

        self._input.on("input", move, throttle=0.3, leading_events=False, js_handler=EMIT_VALUE)

    def _tell(self) -> None:
        text = self._text_of(self.value)
        self._shown.set_text(f"{self._label}: {text}")
        self._input.props["aria-valuetext"] = text
        self._input.update()


def _verdict(found: Glance, ttft_ms: float, tpot_ms: float) -> tuple[str, str]:
    """What the glance says of the SLA, and its tone."""
    if found.tpot_ms is None:
        return "Requests come faster than they are served: the queue would grow.", "bad"
    missed = [
        f"{name} {value:.1f} ms is above {bound:g} ms"
        for name, value, bound in (
            ("TTFT of a request alone", found.ttft_ms, ttft_ms),
            ("TPOT", found.tpot_ms, tpot_ms),
        )
        if value > bound
    ]
    if missed:
        return f"The SLA is missed: {', '.join(missed)}.", "bad"
    return "The SLA may be met: queueing is not in this; simulate it to see.", "good"


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
