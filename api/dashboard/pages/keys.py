"""``/keys``: who may call this service, and a new key."""

from __future__ import annotations

from datetime import timedelta

from fastapi import Request
from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import (
    Row,
    Text,
    button,
    card,
    confirm,
    copied,
    frame,
    guarded,
    note,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.access import ApiKeyCreate, Scope
from api.services import keys
from api.web.auth import Caller
from store import UnitOfWork
from store.models import ApiKey
from store.models.base import utc_now

PATH, TITLE = "/keys", "Keys · Gearshift"
COLUMNS = (
    ("name", "Name"), ("begins", "Begins with"), ("scopes", "May"), ("state", "State"),
    ("used", "Last used"), ("ends", "Ends"), ("made", "Made"),
)  # fmt: skip
MAY = {
    Scope.READ: "read: see everything but keys and audit",
    Scope.TUNE: "tune: start and cancel tuning jobs, upload workloads",
    Scope.APPLY: "apply: change policies, register engines",
    Scope.ADMIN: "admin: all of it, keys and audit too",
}


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    with frame(request, visit, "Keys"):
        if not visit.may(Scope.ADMIN):
            note("Seeing and making keys needs a key with scope 'admin'.", "warn")
            return
        _Keys(visit, await visit.read(_read))


class _Keys:
    """The list, a form for a new one, and taking one away."""

    def __init__(self, visit: Visit, found: list[ApiKey]) -> None:
        self._visit = visit
        with card():
            self._table = table(
                COLUMNS, [_row(key) for key in found], page=25, breaks=("name", "scopes")
            )
        with card("New key"):
            with ui.element("div").classes("fields"):
                self._name = ui.input("Name").props('stack-label hint="Who or what uses it"')
                self._days = ui.number("Ends after, days", min=1, max=3650, precision=0)
                self._days.props('stack-label hint="Empty: never"')
            Text("h3", "What it may do")
            self._boxes = {
                scope: ui.checkbox(text, value=scope is Scope.READ) for scope, text in MAY.items()
            }
            with ui.element("div").classes("row"):
                button("Make the key", self._make, "go")
            self._made = ui.element("div").props('aria-live="polite"')
        with card("Revoke a key"):
            self._which = ui.select(_valid(found), label="Key").classes("w-full")
            self._which.style("max-width:30rem")
            with ui.element("div").classes("row"):
                button("Revoke", self._ask, "risk")

    async def _make(self) -> None:
        name, days = str(self._name.value or "").strip(), self._days.value
        scopes = [scope for scope, box in self._boxes.items() if box.value]
        self._made.clear()
        if not name or not scopes:
            with self._made:
                note("Give it a name, and at least one thing that it may do.", "bad")
            return
        ends = None if not days else utc_now() + timedelta(days=float(days))
        body = ApiKeyCreate(name=name[:120], scopes=scopes, expires_at=ends)
        secret = await self._visit.act(
            Scope.ADMIN, lambda uow, caller: keys.create(uow, body, caller=caller)[1]
        )
        with self._made:
            note("It is shown only now: keep it where secrets are kept.", "good")
            copied(secret, "the new key")
        await self._refresh()

    async def _ask(self) -> None:
        key_id = self._which.value
        if not key_id:
            ui.notify("choose a key first")
            return
        name = _valid(await self._visit.read(_read)).get(key_id, key_id)
        if await confirm(f"Revoke {name}? Whoever uses it is refused at once.",
                         yes="Revoke it", no="Keep it"):  # fmt: skip
            await guarded(lambda: self._revoke(key_id))

    async def _revoke(self, key_id: str) -> None:
        def revoke(uow: UnitOfWork, caller: Caller) -> None:
            keys.revoke(uow, key_id, caller=caller)

        await self._visit.act(Scope.ADMIN, revoke)
        await self._refresh()

    async def _refresh(self) -> None:
        found = await self._visit.read(_read)
        self._table.show_rows([_row(key) for key in found])
        self._which.set_options(_valid(found), value=None)


def _read(uow: UnitOfWork) -> list[ApiKey]:
    return list(uow.keys.list_all())


def _valid(found: list[ApiKey]) -> dict[str, str]:
    """Keys that open still: what they are called, by id."""
    now = utc_now()
    return {key.id: f"{key.name} ({key.prefix}...)" for key in found if key.is_valid(now)}


def _row(key: ApiKey) -> Row:
    if key.revoked_at is not None:
        state = {"text": "revoked", "tone": "none"}
    elif not key.is_valid(utc_now()):
        state = {"text": "expired", "tone": "none"}
    else:
        state = {"text": "valid", "tone": "good"}
    return {
        "key": key.id,
        "name": key.name,
        "begins": f"{key.prefix}...",
        "scopes": ", ".join(key.scopes),
        "state": state,
        "used": words.at(key.last_used_at),
        "ends": "never" if key.expires_at is None else words.at(key.expires_at),
        "made": words.at(key.created_at),
    }
