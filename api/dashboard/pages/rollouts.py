"""``/rollouts``: changes on their way, and what became of them; newest first."""

from __future__ import annotations

from fastapi import Request

from api.dashboard import words
from api.dashboard.layout import (
    Row,
    Text,
    card,
    empty,
    frame,
    page_path,
    poll,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.rollouts import RolloutView
from api.services import rollouts
from store import UnitOfWork
from store.paging import PageRequest

PATH, TITLE = "/rollouts", "Rollouts · Gearshift"
MOST = 100
EVERY_S = 2.0
COLUMNS = (
    ("rollout", "Rollout"),
    ("engine", "Engine"),
    ("state", "State"),
    ("why", "Why"),
    ("attainment", "SLA attainment: candidate, before"),
    ("pairs", "Pairs"),
    ("begun", "Begun"),
    ("ended", "Ended"),
)


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    found = await visit.read(_rows)
    with frame(request, visit, "Rollouts"):
        Text(
            "p",
            "A change that is proven before it spreads: simulated, then by turns with what runs, "
            "and taken back where it serves worse.",
        )
        with card() as there:
            shown = table(COLUMNS, found, page=25)
        with card() as nothing:
            empty(
                "No rollout yet.",
                "Edit an engine's policy, or apply a recommendation, and choose 'Prove it first'.",
            )

    def choose(rows: list[Row]) -> None:
        there.set_visibility(bool(rows))
        nothing.set_visibility(not rows)

    async def refresh() -> None:
        rows = await visit.read(_rows)
        shown.show_rows(rows)
        choose(rows)

    choose(found)
    poll(refresh, EVERY_S)


def _rows(uow: UnitOfWork) -> list[Row]:
    found = [rollouts.view(row) for row in uow.rollouts.list_page(PageRequest(limit=MOST)).items]
    names = {one.engine_id: uow.engines.get(one.engine_id).name for one in found}
    return [_row(one, names[one.engine_id]) for one in found]


def _row(found: RolloutView, engine: str) -> Row:
    tone, _ = words.ROLLOUTS[found.state]
    canary = found.canary
    return {
        "key": found.id,
        "rollout": {"text": found.id, "href": page_path("rollouts", found.id)},
        "engine": {"text": engine, "href": page_path("engines", found.engine_id)},
        "state": {"text": found.state.value.replace("_", " "), "tone": tone},
        "why": words.ROLLOUT_REASONS.get(found.code, found.code),
        "attainment": words.NONE
        if canary is None
        else f"{words.share(canary.candidate_attainment)}, "
        f"{words.share(canary.control_attainment)}",
        "pairs": words.NONE if canary is None else str(canary.pairs),
        "begun": words.at(found.created_at),
        "ended": words.at(found.finished_at),
    }
