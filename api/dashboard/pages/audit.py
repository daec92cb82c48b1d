"""``/audit``: who changed what and why, and whether the chain is whole."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import Row, Text, button, card, frame, note, table
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.services import audit
from policies.numbers import counted
from store import UnitOfWork
from store.models import AuditEntry
from store.paging import PageRequest

PATH, TITLE = "/audit", "Audit · Gearshift"
MOST = 500
COLUMNS = (
    ("at", "At"), ("who", "Who"), ("did", "Did"), ("to", "To"), ("why", "Why"), ("id", "Entry"),
)  # fmt: skip


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    with frame(request, visit, "Audit"):
        if not visit.may(Scope.ADMIN):
            note("Reading the audit needs a key with scope 'admin'.", "warn")
            return
        rows = await visit.read(_rows)
        Text("p", "Each entry holds the hash of the one before it: none can be changed unseen.")
        with card():
            table(COLUMNS, rows, none="No entry yet.", page=25, breaks=("who", "to", "why"))
            if len(rows) == MOST:
                Text("p", f"The newest {MOST:,}; gearshift audit list has all.", "soft")
        with card("Is the chain whole?"):
            _Verdict(visit)


class _Verdict:
    """Follows the chain when it is asked to."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        button("Check every entry", self._check)
        self._said = ui.element("div").props('aria-live="polite"')

    async def _check(self) -> None:
        await self._visit.caller(Scope.ADMIN)
        found = await self._visit.read(lambda uow: audit.verify(uow, since=0, head=None))
        self._said.clear()
        with self._said:
            if found.is_whole:
                note(f"Whole: {counted(found.num_entries, 'entry', 'entries')}.", "good")
                Text("p", f"Last hash, to note elsewhere: {found.last_hash or words.NONE}", "soft")
            else:
                note(f"Broken at entry {found.broken_id}: {found.reason}.", "bad")


def _rows(uow: UnitOfWork) -> list[Row]:
    names = {key.id: key.name for key in uow.keys.list_all()}
    return [_row(one, names) for one in uow.audit.list_page(PageRequest(limit=MOST)).items]


def _row(entry: AuditEntry, names: dict[str, str]) -> Row:
    return {
        "key": entry.id,
        "at": words.at(entry.created_at),
        "who": names.get(entry.actor, entry.actor),
        "did": entry.action,
        "to": entry.resource,
        "why": entry.reason or words.NONE,
        "id": f"#{entry.id}",
    }
