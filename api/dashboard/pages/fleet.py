"""``/``: every engine, what it runs and how it stands."""

from __future__ import annotations

from fastapi import Request

from api.dashboard import words
from api.dashboard.layout import Row, card, empty, frame, page_path, poll, set_rows, table
from api.dashboard.visit import Visit
from api.services import overview
from api.services.overview import EngineOverview
from api.web.settings import ServiceSettings
from store import UnitOfWork

PATH, TITLE = "/", "Fleet · Gearshift"
COLUMNS = (
    ("engine", "Engine"),
    ("model", "Model"),
    ("plan", "Plan"),
    ("modes", "Step time by mode"),
    ("rate", "Requests/s"),
    ("queue", "Running / waiting"),
    ("kv", "KV cache in use"),
    ("attainment", "SLA attainment"),
    ("standing", "Standing"),
    ("why", "Why"),
)
NO_ENGINE = (
    "Start one and let it report here: gearshift engine serve --model DIR --control ADDRESS, with "
    "a key of scope apply in GEARSHIFT_CONTROL_KEY."
)


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    found = await visit.read_shared(_rows, is_new=True)
    with frame(request, visit, "Fleet"):
        with card() as there:
            shown = table(COLUMNS, list(found))
        with card() as nothing:
            empty("No engine has registered yet.", NO_ENGINE)

    def choose(rows: list[Row]) -> None:
        there.set_visibility(bool(rows))
        nothing.set_visibility(not rows)

    async def refresh() -> None:
        rows = await visit.read_shared(_rows, is_new=False)
        set_rows(shown, list(rows))
        choose(rows)

    choose(found)
    poll(refresh)


def _rows(uow: UnitOfWork, settings: ServiceSettings) -> list[Row]:
    return [_row(one) for one in overview.fleet(uow, settings)]


def _row(found: EngineOverview) -> Row:
    engine, load, window = found.engine, found.load, found.window
    tone, word, why = words.standing(found)
    return {
        "key": engine.id,
        "engine": {"text": engine.name, "href": page_path("engines", engine.id)},
        "model": engine.model_name,
        "plan": words.plan_of(engine.effective_policy),
        "modes": words.NONE if load is None else words.mode_share(load.mode_share),
        "rate": words.number(None if load is None else load.rate_rps),
        "queue": words.NONE if load is None else f"{load.running} / {load.waiting}",
        "kv": words.share(None if load is None else load.kv_usage),
        "attainment": words.share(None if window is None else window.attainment),
        "standing": {"text": word, "tone": tone},
        "why": why or words.NONE,
    }
