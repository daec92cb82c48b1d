"""``/rollouts/ID``: one change on its way: how far it is, what is known, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import ceil
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
    table,
)
from api.dashboard.proposal import changes_table
from api.dashboard.visit import Visit
from api.documents.policy import PolicyDocument, differences, envelope_in
from api.schemas.access import Scope
from api.schemas.rollouts import RolloutDetail
from api.services import rollouts
from store import NotFoundError, UnitOfWork
from store.models import RolloutState

PATH, TITLE = "/rollouts/{rollout_id}", "Rollout · Gearshift"
BACK = ("/rollouts", "rollouts")
EVERY_S = 2.0
FACTS = (
    "Engine asked to run",
    "SLA attainment: candidate",
    "SLA attainment: before",
    "Difference",
    "Pairs counted / set aside",
    "The candidate has served",
    "Counts as worse",
    "Begun",
    "Ended",
)
STATES = (("at", "At"), ("state", "State"), ("why", "Why"), ("told", "Details"))
# Reasons that say no more than the word of their code.
UNTOLD = ("", "rollout", "not simulated, as asked for")
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A rollout, what it changes, and its pairs as they came."""

    found: RolloutDetail
    engine: str
    changes: list[Json]
    pairs: list[Json]


async def show(request: Request, rollout_id: str) -> None:
    """The page."""
    visit = Visit.of(request)
    try:
        known = await visit.read(lambda uow: _look(uow, rollout_id))
    except NotFoundError as error:
        missing(request, visit, str(error), back=BACK)
        return
    with frame(request, visit, f"Rollout on {known.engine}", back=BACK):
        head = _Head(visit, known)
        with card("What it changes"):
            changes_table(known.changes)
        with card("Difference of SLA attainment, candidate less before") as drawn:
            effect = chart(_effect(known), "difference of SLA attainment, in points, by pair")
        with card("How it went"):
            states = table(STATES, _states(known))
    drawn.set_visibility(bool(known.pairs))

    async def refresh() -> None:
        now = await visit.read(lambda uow: _look(uow, rollout_id))
        head.show(now)
        states.show_rows(_states(now))
        if len(now.pairs) != head.drawn_pairs:
            head.drawn_pairs = len(now.pairs)
            redraw(effect, _effect(now))
            drawn.set_visibility(True)
        if now.found.state.is_final:
            timer.deactivate()

    timer = poll(refresh, EVERY_S)


def _look(uow: UnitOfWork, rollout_id: str) -> Known:
    found = rollouts.detail(uow, rollout_id)
    engine = uow.engines.get(found.engine_id)
    before = PolicyDocument.from_json(uow.policies.get(engine.id, found.control_version).document)
    after = PolicyDocument.from_json(found.candidate)
    changes = differences(before, after, envelope_in(engine.envelope))
    return Known(
        found=found,
        engine=engine.name,
        changes=[change.to_json() for change in changes],
        pairs=[event.data for event in uow.rollouts.list_events_of(rollout_id, "pair")],
    )


class _Head:
    """Where it stands and why, its numbers, and what one may do."""

    def __init__(self, visit: Visit, known: Known) -> None:
        self._visit = visit
        self._id = known.found.id
        self.drawn_pairs = len(known.pairs)
        with ui.element("div").classes("row"):
            self._tag = Text("span", "", "tag")
            self._why = Text("span", "", "soft").props('aria-live="polite"')
        with card():
            self._change = facts([(name, "") for name in FACTS])
            self._verdict = note("")
            with ui.element("div").classes("row"):
                self._cancel = button("Cancel, and go back", self._ask, "risk")
                ui.link("See the engine", page_path("engines", known.found.engine_id))
        self.show(known)

    def show(self, known: Known) -> None:
        found = known.found
        tone, text = words.ROLLOUTS[found.state]
        self._tag.set_text(text)
        self._tag.classes(replace=f"tag {tone}")
        reason = words.ROLLOUT_REASONS.get(found.code, found.code)
        self._why.set_text(reason if found.reason in UNTOLD else f"{reason}: {found.reason}")
        self._change(_facts(known))
        verdict = _verdict(found)
        self._verdict.set_text(verdict)
        self._verdict.set_visibility(bool(verdict))
        self._cancel.set_visibility(self._visit.may(Scope.APPLY) and not found.state.is_final)

    async def _ask(self) -> None:
        question = "End it now? The engine is asked for what it ran before."
        if await confirm(question, yes="Cancel the rollout", no="Let it go on"):
            await guarded(self._end)

    async def _end(self) -> None:
        rollout_id = self._id
        await self._visit.act(
            Scope.APPLY, lambda uow, caller: rollouts.cancel(uow, rollout_id, caller=caller).state
        )


def _facts(known: Known) -> list[str]:
    found, canary = known.found, known.found.canary
    if canary is None:
        numbers = [words.NONE] * 6
    else:
        effect = canary.effect
        numbers = [
            words.ARMS.get(canary.arm or "", words.NONE),
            words.share(canary.candidate_attainment),
            words.share(canary.control_attainment),
            words.NONE
            if effect.mean is None
            else f"{_signed(effect.mean)} ({_signed(effect.low)} to {_signed(effect.high)})",
            f"{canary.pairs} / {canary.set_aside}",
            f"{words.span(canary.exposed_s)} of {words.span(found.limits['max_exposed_s'])}, "
            f"{canary.exposed_requests} requests",
        ]
    return [
        *numbers,
        f"below {-found.limits['tolerance'] * 100:g} points",
        words.at(found.created_at),
        words.at(found.finished_at),
    ]


def _verdict(found: RolloutDetail) -> str:
    """What the simulation said."""
    said = found.verdict
    if said is None or said.get("effect") is None:
        return ""
    effect = said["effect"]
    return (
        f"Simulated on {said['requests']:,} requests of the last hours: attainment "
        f"{words.share(said['candidate_attainment'])}, before "
        f"{words.share(said['control_attainment'])} (difference {_signed(effect['low'])} to "
        f"{_signed(effect['high'])})."
    )


def _effect(known: Known) -> charts.Json:
    """The bounds as they closed in, pair by pair."""
    series = {
        name: [(pair["pair"], _points(pair["effect"][key])) for pair in known.pairs]
        for name, key in (("mean", "mean"), ("low end", "low"), ("high end", "high"))
    }
    tolerance = known.found.limits["tolerance"] * 100
    means = [abs(value) for _, value in series["mean"] if value is not None]
    # Ends begin at all that a share can change by, which would flatten what comes after.
    most = ceil(max(5 * tolerance, 2 * max(means, default=0.0), 1.0))
    return charts.by_number(
        "pairs of slices", "points", series, bounds={"worse below": -tolerance}, most=most
    )


def _signed(share: float) -> str:
    return words.signed(share * 100, "points")


def _points(share: float | None) -> float | None:
    return None if share is None else share * 100


def _states(known: Known) -> list[Row]:
    return [
        {
            "key": number,
            "at": words.at(datetime.fromisoformat(turn["at"])),
            "state": _state(turn["state"]),
            "why": words.ROLLOUT_REASONS.get(turn["code"], turn["code"]),
            "told": words.NONE if turn["reason"] in UNTOLD else turn["reason"],
        }
        for number, turn in enumerate(known.found.transitions)
    ]


def _state(state: str) -> Row:
    tone, text = words.ROLLOUTS[RolloutState(state)]
    return {"text": text, "tone": tone}
