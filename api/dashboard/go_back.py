"""Going back to an earlier version of an engine's policy."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import button, confirm, guarded
from api.dashboard.proposal import tell_version
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.serving import ChangeSet
from api.services import policies
from api.web.auth import Caller
from store import UnitOfWork
from store.models import PolicyVersion


class GoBack:
    """Choose an earlier version, and ask the engine for it again; nothing for keys that may not."""

    def __init__(self, visit: Visit, engine_id: str) -> None:
        self._visit = visit
        self._engine_id = engine_id
        self._names: dict[int, str] = {}
        with ui.element("div").classes("row") as self._all:
            self._which = ui.select({}, label="Earlier version").style("min-width:min(24rem,100%)")
            button("Go back to it", self._ask, "risk")
        self._said = ui.element("div").props('aria-live="polite"')

    def show(self, versions: Sequence[PolicyVersion]) -> None:
        """What there is to go back to: all but the newest, and what the engine has refused."""
        names = {
            row.version: f"{row.version}: {words.settings_of(row.document)}"
            for row in versions[1:]
            if row.ack_state.value != "refused"
        }
        self._all.set_visibility(self._visit.may(Scope.APPLY) and bool(names))
        if names != self._names:
            self._names = names
            chosen = self._which.value
            self._which.set_options(names, value=chosen if chosen in names else None)

    async def _ask(self) -> None:
        version = self._which.value
        if version is None:
            ui.notify("choose a version first")
            return
        question = f"Ask the engine for version {self._names[version]} again?"
        if await confirm(question, yes="Go back to it", no="Stay"):
            await guarded(lambda: self._go(version))

    async def _go(self, version: int) -> None:
        engine_id = self._engine_id

        def go(uow: UnitOfWork, caller: Caller) -> ChangeSet:
            return policies.rollback(
                uow, engine_id, version, caller=caller, reason="rolled back in the dashboard"
            )

        answer = await self._visit.act(Scope.APPLY, go)
        self._said.clear()
        with self._said:
            tell_version(answer)
