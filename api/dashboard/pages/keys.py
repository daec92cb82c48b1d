"""``/keys``: who may call this service; a new key, one in place of another, and one the less."""

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
from api.schemas.access import MAX_OVERLAP_S, ApiKeyCreate, ApiKeyRotate, Scope
from api.services import keys
from api.web.auth import Caller
from store import UnitOfWork
from store.models import ApiKey
from store.models.base import utc_now

PATH, TITLE = "/keys", "Keys · Gearshift"
COLUMNS = (
    ("name", "Name"), ("begins", "Begins with"), ("scopes", "Scopes"), ("state", "State"),
    ("used", "Last used"), ("ends", "Expires"), ("made", "Created"),
)  # fmt: skip
HOUR_S = 3600
DAY_H = 24
MOST_H = MAX_OVERLAP_S // HOUR_S
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
    """The list, a form for a new one, and replacing or revoking one that there is."""

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
        with card("Rotate or revoke a key"):
            with ui.element("div").classes("fields"):
                self._which = ui.select(_valid(found), label="Key").props("stack-label")
                self._hours = ui.number(
                    "Old key stays valid, hours",
                    value=DAY_H,
                    min=0,
                    max=MOST_H,
                )
                self._hours.props('stack-label hint="Until its users have the new one"')
            with ui.element("div").classes("row"):
                button("Rotate ...", self._ask_to_rotate, "go")
                button("Revoke ...", self._ask_to_revoke, "risk")
            self._rotated = ui.element("div").props('aria-live="polite"')

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
        _show_once(self._made, secret)
        await self._refresh()

    async def _chosen(self) -> tuple[str, str] | None:
        """The key chosen and what it is called; None: none is, which is told."""
        self._rotated.clear()
        if not self._which.value:
            with self._rotated:
                note("Choose a key first.", "bad")
            return None
        key_id = str(self._which.value)
        return key_id, _valid(await self._visit.read(_read)).get(key_id, key_id)

    async def _ask_to_rotate(self) -> None:
        chosen = await self._chosen()
        if chosen is None:
            return
        (key_id, name), hours = chosen, self._hours.value
        if hours is None or not 0 <= hours <= MOST_H:
            with self._rotated:
                note(f"Hours: from 0 to {MOST_H}.", "bad")
            return
        if not hours and key_id == self._visit.key_id:
            # The page would be closed before the new secret is seen.
            with self._rotated:
                note("This page is open by that very key: give it some hours more.", "bad")
            return
        until = f"opens for {hours:g} h more" if hours else "is refused at once"
        if await confirm(f"Make a key in place of {name}? The old one {until}.",
                         yes="Rotate it", no="Keep it", kind="go"):  # fmt: skip
            await guarded(lambda: self._rotate(key_id, round(hours * HOUR_S)))

    async def _rotate(self, key_id: str, overlap_s: int) -> None:
        body = ApiKeyRotate(overlap_s=overlap_s)
        secret = await self._visit.act(
            Scope.ADMIN, lambda uow, caller: keys.rotate(uow, key_id, body, caller=caller)[1]
        )
        _show_once(self._rotated, secret)
        await self._refresh()

    async def _ask_to_revoke(self) -> None:
        chosen = await self._chosen()
        if chosen is None:
            return
        key_id, name = chosen
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


def _show_once(place: ui.element, secret: str) -> None:
    with place:
        note("It is shown only now: keep it where secrets are kept.", "good")
        copied(secret, "the new key")


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
