"""``/``: every engine, what it runs and how it stands."""

from __future__ import annotations

from collections import Counter

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import (
    Row,
    Text,
    card,
    empty,
    frame,
    guarded,
    page_path,
    poll,
    table,
)
from api.dashboard.visit import Visit
from api.services import overview
from api.services.overview import EngineOverview, Standing
from api.web.settings import ServiceSettings
from policies.numbers import counted
from store import UnitOfWork

PATH, TITLE = "/", "Fleet · Gearshift"
COLUMNS = (
    ("engine", "Engine"),
    ("standing", "Standing"),
    ("why", "Why"),
    ("model", "Model"),
    ("plan", "Plan"),
    ("modes", "Modes, by step time"),
    ("rate", "Requests/s"),
    ("queue", "Running / waiting"),
    ("kv", "KV cache in use"),
    ("attainment", "SLA attainment"),
)
ROWS = 50


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    found = await visit.read_shared(_rows, is_new=True)
    with frame(request, visit, "Fleet"):
        ui.link("Add an engine", "/engines/new").classes("go")
        with card() as there:
            with ui.element("div").classes("spread"):
                about = Text("p", "").props('aria-live="polite"')
                wanted = ui.input("Show engines with").props("dense clearable debounce=200")
            shown = table(COLUMNS, list(found), none="No engine has that.", page=ROWS)
        with card() as nothing:
            empty(
                "No engine has registered yet.",
                "Add one above: an engine of Gearshift, or a vLLM or SGLang server that runs.",
            )

    def fill(rows: list[Row]) -> None:
        about.set_text(_counts(rows))
        shown.show_rows([row for row in rows if _has(row, wanted.value or "")])
        there.set_visibility(bool(rows))
        nothing.set_visibility(not rows)

    async def refresh() -> None:
        fill(await visit.read_shared(_rows, is_new=False))

    async def look_for() -> None:
        await guarded(refresh)

    fill(found)
    wanted.on_value_change(look_for)
    poll(refresh)


def _has(row: Row, text: str) -> bool:
    """Whether a text stands anywhere in a row."""
    cells = (cell["text"] if isinstance(cell, dict) else cell for cell in row.values())
    return any(text.strip().lower() in cell.lower() for cell in cells)


def _rows(uow: UnitOfWork, settings: ServiceSettings) -> list[Row]:
    worst_first = list(Standing)
    found = sorted(overview.fleet(uow, settings), key=lambda one: worst_first.index(one.standing))
    return [_row(one) for one in found]


def _counts(rows: list[Row]) -> str:
    """How many engines stand how: 98 engines: 2 silent, 96 fine."""
    counts = Counter(row["standing"]["text"] for row in rows)
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{counted(len(rows), 'engine')}: {told}"


def _row(found: EngineOverview) -> Row:
    engine, load, window = found.engine, found.load, found.window
    tone, word, why = words.standing(found)
    return {
        "key": engine.id,
        "engine": {"text": engine.name, "href": page_path("engines", engine.id)},
        "model": words.model_of(engine),
        "plan": words.plan_of(engine.effective_policy),
        "modes": words.NONE if load is None else words.mode_share(load.mode_share),
        "rate": words.number(None if load is None else load.rate_rps),
        "queue": words.NONE if load is None else f"{load.running} / {load.waiting}",
        "kv": words.share(None if load is None else load.kv_usage),
        "attainment": words.share(None if window is None else window.attainment),
        "standing": {"text": word, "tone": tone},
        "why": why or words.NONE,
    }
