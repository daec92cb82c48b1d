"""``gearshift audit``: the audit trail, for whoever can open the service's database."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.common import end, fail, print_json, print_line
from api.cli.control_plane import NewestOption
from api.cli.engine_options import JsonOption
from api.cli.exit_codes import ExitCode
from api.cli.service import DatabaseUrl, open_current
from api.cli.tables import minute, print_rows

HASH_CHARS = 64


def list_entries(
    newest: NewestOption = 20,
    resource: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Of this only, as in engines/eng_... or keys/..."),
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: JsonOption = False,
) -> None:
    """List who changed what and why, newest first."""
    from api.schemas.access import AuditView
    from store import PageRequest

    with open_current(database_url) as database, database.read() as uow:
        page = uow.audit.list_page(PageRequest(limit=newest), resource=resource)
        found = [AuditView.model_validate(row) for row in page.items]
    if as_json:
        print_json({"entries": [row.to_json() for row in found]})
        return
    print_rows(
        ("entry", "at", "who", "did", "to", "why"),
        (
            (str(row.id), minute(row.created_at), row.actor, row.action, row.resource, row.reason)
            for row in found
        ),
    )


def verify(
    since: Annotated[
        int, typer.Option(min=0, help="Begin at this entry; by default at the first.")
    ] = 0,
    head: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="A last hash noted earlier, which must still be there."),
    ] = None,
    database_url: DatabaseUrl = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the audit's chain of hashes, and name the first entry that breaks it.

    Entries cut off at its end leave a whole chain: note the last hash elsewhere, and name it as
    --head the next time.
    """
    from api.services import audit

    if head is not None and len(head) != HASH_CHARS:
        fail(f"--head {head!r}: a hash has {HASH_CHARS} characters")
    with open_current(database_url) as database, database.read() as uow:
        found = audit.verify(uow, since=since, head=head)
    if as_json:
        print_json(found.to_json())
    elif not found.is_whole:
        print_line(f"broken at entry {found.broken_id}: {found.reason}")
    elif found.has_head is False:
        print_line(f"cut: no entry has the hash {head}")
    else:
        print_line(f"whole: {found.num_entries} entries, last hash {found.last_hash}")
    if not found.is_whole or found.has_head is False:
        end(ExitCode.FAULT)
