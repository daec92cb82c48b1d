"""``/engines/ID``: one engine as it runs, what the controller did, and its policy."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.engine_charts import Charts, mark
from api.dashboard.engine_seen import Past, Seen, look
from api.dashboard.go_back import GoBack
from api.dashboard.layout import (
    Row,
    Text,
    card,
    facts,
    frame,
    missing,
    page_path,
    poll,
    table,
)
from api.dashboard.observed import OutsideCard
from api.dashboard.policy_editor import Offer, PolicyEditor
from api.dashboard.proposal import read_policy
from api.dashboard.replicas import Replicas, settings_in_force
from api.dashboard.visit import Visit
from api.documents.live_series import BIN_S, Bin
from api.documents.reasons import ACTIONS, REJECTIONS, meaning
from api.services.overview import EngineOverview
from store import NotFoundError
from store.models import DecisionRow, PolicyVersion

PATH, TITLE = "/engines/{engine_id}", "Engine · Gearshift"
FACTS = (
    "Requests/s",
    "Running / waiting",
    "KV cache in use",
    "Attainment, last 15 s",
    "Step time by mode",
    "Model",
    "SLA",
    "Settings",
)
DECISIONS = (
    ("mark", "Mark"), ("at", "At"), ("did", "Controller"), ("why", "Why"), ("saw", "Saw"),
    ("not", "Not taken"),
)  # fmt: skip
NO_DECISION = (
    "None: the controller works on engines that run a recommendation. Apply one from a tuning job."
)
VERSIONS = (
    ("version", "Version"), ("at", "At"), ("by", "By"), ("why", "Why"), ("settings", "Settings"),
    ("ack", "Engine"),
)  # fmt: skip


async def show(request: Request, engine_id: str) -> None:
    """The page."""
    visit, past = Visit.of(request), Past()
    try:
        seen = await visit.read(lambda uow: look(uow, visit, engine_id, past))
        policy = await visit.read(lambda uow: read_policy(uow, engine_id))
    except NotFoundError as error:
        missing(request, visit, str(error), back=("/", "fleet"))
        return
    with frame(request, visit, seen.found.engine.name, back=("/", "fleet")):
        head = _Head(seen)
        outside = replicas = None
        if seen.outside is not None:
            with card("Observed server"):
                outside = OutsideCard(seen.outside)
        drawn = Charts(seen)
        if seen.outside is None:
            with card("Replicas"):
                replicas = Replicas(visit, engine_id)
                replicas.show(settings_in_force(seen.found.engine.effective_policy))
        with card("What the controller decided"):
            decisions = table(DECISIONS, _decisions(seen), none=NO_DECISION, page=8)
        with card("Policy"):
            editor = PolicyEditor(visit, policy, _offer(seen))
        with card("Versions of the policy"):
            versions = table(VERSIONS, _versions(seen), page=8)
            back = GoBack(visit, engine_id)
            back.show(seen.versions)

    async def refresh() -> None:
        now = await visit.read(lambda uow: look(uow, visit, engine_id, past))
        head.show(now)
        drawn.show(now)
        if outside is not None and now.outside is not None:
            outside.show(now.outside)
        if replicas is not None:
            replicas.show(settings_in_force(now.found.engine.effective_policy))
        decisions.show_rows(_decisions(now))
        versions.show_rows(_versions(now))
        back.show(now.versions)
        editor.note_version(now.found.engine.desired_version)

    poll(refresh)


def _offer(seen: Seen) -> Offer:
    outside = seen.outside
    is_restarted = outside is not None and outside.seen.restarts is not None
    return Offer.of(seen.found.engine, is_restarted=is_restarted)


class _Head:
    """How the engine stands, and its numbers now."""

    def __init__(self, seen: Seen) -> None:
        with ui.element("div").classes("row"):
            self._tag = Text("span", "", "tag")
            self._why = Text("span", "", "soft")
        with ui.element("p").classes("note warn").props('role="status"') as self._turns:
            Text("span", "A rollout is running here, and changes the policy in turns: ")
            self._rollout = ui.link("see how it goes", "/rollouts")
        with card():
            self._change = facts([(name, "") for name in FACTS])
        self.show(seen)

    def show(self, seen: Seen) -> None:
        found = seen.found
        tone, word, why = words.standing(found)
        self._tag.set_text(word)
        self._tag.classes(replace=f"tag {tone}")
        self._why.set_text(why)
        self._turns.set_visibility(seen.rollout_id is not None)
        if seen.rollout_id is not None:
            self._rollout.props["href"] = page_path("rollouts", seen.rollout_id)
        self._change(_facts(found, seen.bins))


def _facts(found: EngineOverview, bins: list[Bin]) -> list[str]:
    engine, load = found.engine, found.load
    judged = [b.attainment for b in bins[-15 // BIN_S :] if b.attainment is not None]
    attainment = found.window.attainment if found.window else None
    if attainment is None and judged:
        attainment = sum(judged) / len(judged)
    return [
        words.number(load.rate_rps if load else None),
        f"{load.running} / {load.waiting}" if load else words.NONE,
        words.share(load.kv_usage if load else None),
        words.share(attainment),
        words.mode_share(load.mode_share) if load else words.NONE,
        words.model_of(engine),
        engine.sla or "none: set one in the policy below",
        words.settings_of(engine.effective_policy),
    ]


def _decisions(seen: Seen) -> list[Row]:
    return [
        {
            "key": row.id,
            "mark": mark(row),
            "at": words.at(row.created_at),
            "did": _did(row),
            "why": meaning(row.reason),
            "saw": _saw(row),
            "not": _rejected(row),
        }
        for row in seen.decisions
    ]


def _did(row: DecisionRow) -> str:
    band = "" if row.band_index is None else f" (load band {row.band_index})"
    version = "" if row.policy_version is None else f", version {row.policy_version}"
    return f"{ACTIONS.get(row.action, row.action)}{band}{version}"


def _saw(row: DecisionRow) -> str:
    rate = row.observed.get("rate_rps")
    return words.NONE if rate is None else f"{rate:.1f} requests/s"


def _rejected(row: DecisionRow) -> str:
    parts = [f"band {r['band_index']}: {REJECTIONS.get(r['why'], r['why'])}"
             for r in row.rejected]  # fmt: skip
    return "; ".join(parts) or words.NONE


def _versions(seen: Seen) -> list[Row]:
    return [
        {
            "key": row.version,
            "version": str(row.version),
            "at": words.at(row.created_at),
            "by": row.origin,
            "why": row.reason,
            "settings": words.settings_of(row.document),
            "ack": _ack(row),
        }
        for row in seen.versions
    ]


def _ack(row: PolicyVersion) -> dict[str, str] | str:
    tone = {"applied": "good", "refused": "bad"}.get(row.ack_state.value, "warn")
    took = "" if row.ack_seconds is None else f" in {row.ack_seconds:.2f} s"
    if row.ack_transition:
        took += f" ({row.ack_transition['way']})"
    message = f": {row.ack_message}" if row.ack_message else ""
    return {"text": row.ack_state.value, "tone": tone, "more": f"{took}{message}"}
