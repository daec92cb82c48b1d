"""``gearshift keys``: API keys of the service, for whoever can open its database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail, print_json, print_line
from api.cli.engine_options import JsonOption
from api.cli.service import DatabaseUrl, open_current
from api.cli.tables import minute, print_rows

if TYPE_CHECKING:
    from api.schemas.access import Scope
    from store.models import ApiKey

# The name in the audit: no key was asked for here.
ACTOR = "command line"
MOST_OVERLAP_S = 30 * 86_400


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="What it may do, once or more: read; tune or apply, which read too; admin, all."
        ),
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, help="Days until it expires; by default it does not."),
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once. It works at once, also where the service runs."""
    from api.schemas.access import ApiKeyCreate
    from api.services import keys
    from api.services.audit import service_caller
    from store.models.base import utc_now

    longest = 120
    if not 0 < len(name) <= longest:
        fail(f"NAME has {len(name)} characters; it may have 1 to {longest}")
    expires_at = None if days is None else utc_now() + timedelta(days=days)
    body = ApiKeyCreate.model_validate(
        {
            "name": name,
            "scopes": _scopes(scope),
            "expires_at": None if expires_at is None else expires_at.isoformat(),
        }
    )
    with open_current(database_url) as database, database.begin() as uow:
        key, secret = keys.create(uow, body, caller=service_caller(ACTOR))
        _show(key, secret, as_json=as_json)


def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As 'gearshift keys list' has it.")],
    overlap_s: Annotated[
        int,
        typer.Option(min=0, max=MOST_OVERLAP_S, help="The old key opens for so many seconds more."),
    ] = 86_400,
    database_url: DatabaseUrl = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key in place of another, of the same name and scopes, and show it, this once."""
    from api.schemas.access import ApiKeyRotate
    from api.services import keys
    from api.services.audit import service_caller

    body = ApiKeyRotate(overlap_s=overlap_s)
    with open_current(database_url) as database, database.begin() as uow:
        key, secret = keys.rotate(uow, key_id, body, caller=service_caller(ACTOR))
        _show(key, secret, as_json=as_json, replaces=uow.keys.get(key_id))


def list_keys(database_url: DatabaseUrl = None, as_json: JsonOption = False) -> None:
    """List all keys, also revoked and expired ones, by what was said of them when they were made.

    The keys themselves are not kept, only their first characters.
    """
    from api.schemas.access import ApiKeyView

    with open_current(database_url) as database, database.read() as uow:
        found = uow.keys.list_all()
    if as_json:
        print_json({"keys": [ApiKeyView.model_validate(key).to_json() for key in found]})
    else:
        _print(found)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As 'gearshift keys list' has it.")],
    database_url: DatabaseUrl = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key useless, at once. The last one that may do everything stays."""
    from api.schemas.access import ApiKeyView
    from api.services import keys
    from api.services.audit import service_caller

    with open_current(database_url) as database, database.begin() as uow:
        keys.revoke(uow, key_id, caller=service_caller(ACTOR))
        key = uow.keys.get(key_id)
    if as_json:
        print_json(ApiKeyView.model_validate(key).to_json())
    else:
        print_line(f"key {key.id} ({key.name}) is revoked")


def _show(key: ApiKey, secret: str, *, as_json: bool, replaces: ApiKey | None = None) -> None:
    """Show a key before it is stored: one that could not be shown is not kept."""
    from api.schemas.access import ApiKeyCreated, ApiKeyRotated, ApiKeyView

    view = ApiKeyView.model_validate(key).model_dump()
    if as_json and replaces is not None:
        print_json(ApiKeyRotated(**view, secret=secret, replaces=replaces.id).to_json())
    elif as_json:
        print_json(ApiKeyCreated(**view, secret=secret).to_json())
    else:
        print_line(f"key {key.id}, {', '.join(key.scopes)}, shown only now: {secret}")
        if replaces is not None:
            print_line(f"in place of {replaces.id} ({replaces.name}), {_validity(replaces)} UTC")


def _scopes(words: list[str]) -> list[Scope]:
    from api.schemas.access import Scope

    for word in words:
        if word not in set(Scope):
            fail(f"--scope {word}: known are {', '.join(Scope)}")
    return [Scope(word) for word in words]


def _print(found: Sequence[ApiKey]) -> None:
    print_rows(
        ("id", "name", "begins with", "scopes", "state"),
        ((key.id, key.name, key.prefix, ", ".join(key.scopes), _state(key)) for key in found),
    )


def _state(key: ApiKey) -> str:
    used = "never used" if key.last_used_at is None else f"used {minute(key.last_used_at)}"
    return f"{_validity(key)}, {used}"


def _validity(key: ApiKey) -> str:
    from store.models.base import utc_now

    if key.revoked_at is not None:
        return f"revoked {minute(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.is_valid(utc_now()) else 'expired'} {minute(key.expires_at)}"
