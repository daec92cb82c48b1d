"""``gearshift policies``: what engines are asked to run, by version, and changes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.changes import change_document, tell_change
from api.cli.common import fail, print_json, print_lines
from api.cli.control_plane import ControlPlane, EngineArgument, find_engine_id
from api.cli.grouped import grouped
from api.cli.patches import PATCH_HELP, read_patch
from api.cli.tables import minute, print_rows

if TYPE_CHECKING:
    from api.schemas.serving import PolicyVersionView, PolicyView

Json = dict[str, Any]
MOST_VERSION = 2**31 - 1
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit.")]


@grouped()
def show(engine: EngineArgument, plane: ControlPlane) -> None:
    """Say what an engine is asked to run, and what is in force; --json: the whole document."""
    with plane.client() as client:
        policy = client.get_engine_policy(find_engine_id(client, engine))
    plane.tell(policy, lambda found: list(_lines(found)))


@grouped()
def list_versions(engine: EngineArgument, plane: ControlPlane) -> None:
    """List an engine's policies so far, newest first."""
    with plane.client() as client:
        found = client.list_policy_versions(find_engine_id(client, engine))
    plane.tell_rows("versions", found, ("version", "at", "by", "became", "why"), _version_cells)


@grouped()
def knobs(engine: EngineArgument, plane: ControlPlane) -> None:
    """List what can be changed of a running engine, as it said when it registered.

    A change of class hot is in force at the next step; drain: as requests finish; reshape: ranks
    start anew, requests are kept; restart: refused.
    """
    with plane.client() as client:
        found = client.get_engine_capabilities(find_engine_id(client, engine))
    if plane.as_json:
        print_json({"knobs": found})
    else:
        print_rows(("knob", "at start", "may be", "class"), map(_knob_cells, found))


@grouped(help_order="engine before after")
def diff(
    engine: EngineArgument,
    plane: ControlPlane,
    before: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="VERSION",
            min=1,
            max=MOST_VERSION,
            help="Compare with this; by default the one before --to.",
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--to", metavar="VERSION", min=1, max=MOST_VERSION, help="By default the newest."
        ),
    ] = None,
) -> None:
    """Say in what two versions of an engine's policy differ."""
    with plane.client() as client:
        found = client.list_policy_versions(find_engine_id(client, engine))
    versions = {row.version: row for row in found}
    if len(versions) < 2:  # one that just registered has what it runs, if that
        fail(f"{engine} has no two versions of its policy yet: nothing was changed")
    newest, oldest = max(versions), min(versions)
    newer = _version(versions, newest if after is None else after)
    if before is None and newer.version == oldest:
        fail(f"version {oldest} is the first: compare it with a later one, --to {newest}")
    older = _version(versions, newer.version - 1 if before is None else before)
    changes = list(_differences(older.document, newer.document))
    document = {"from": older.version, "to": newer.version, "changes": changes}
    if plane.as_json:
        print_json(document)
        return
    lines = [f"version {older.version} -> {newer.version}: {newer.reason}"]
    lines += [f"  {one['knob']}: {_plain(one['from'])} -> {_plain(one['to'])}" for one in changes]
    print_lines(lines if changes else [*lines, "  nothing differs"])


@grouped(help_order="engine patch dry_run reason")
def apply(
    engine: EngineArgument,
    patch: Annotated[str, typer.Argument(metavar="PATCH", help=f"{PATCH_HELP}.")],
    plane: ControlPlane,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would change, at what cost, and what it would have done in the "
            "last hours.",
        ),
    ] = False,
    reason: ReasonOption = "gearshift policies apply",
) -> None:
    """Ask an engine for other settings, SLA or guards. A recommendation is for 'gearshift apply'.

    Refused where somebody else changes the policy at the same time.
    """
    from api.documents.policy import PolicyDocument

    asked = read_patch(patch)
    with plane.client() as client:
        policy = client.get_engine_policy(find_engine_id(client, engine))
        wanted = PolicyDocument.from_json(policy.requested).patched(asked)
        answer = client.patch_engine_policy(policy, asked, is_dry_run=dry_run, reason=reason)
    _tell(change_document(answer, wanted.settings), plane)


@grouped(help_order="engine version reason")
def roll_back(
    engine: EngineArgument,
    plane: ControlPlane,
    version: Annotated[
        int | None,
        typer.Option(
            metavar="VERSION", min=1, max=MOST_VERSION, help="By default one further back."
        ),
    ] = None,
    reason: ReasonOption = "gearshift policies rollback",
) -> None:
    """Ask an engine for an earlier version again, as a new one."""
    from api.documents.policy import settings_in

    with plane.client() as client:
        engine_id = find_engine_id(client, engine)
        answer = client.roll_back_engine_policy(engine_id, version=version, reason=reason)
    settings = settings_in(answer.policy.requested)
    _tell(change_document(answer, settings), plane)


def _tell(document: Json, plane: ControlPlane) -> None:
    show = plane.command(f"policies show {document['engine']}")
    tell_change(document, as_json=plane.as_json, show=show)


def _version(versions: dict[int, PolicyVersionView], number: int) -> PolicyVersionView:
    """Ends where there is no such version."""
    if number not in versions:
        fail(f"version {number}: there are {min(versions)} to {max(versions)}")
    return versions[number]


def _lines(found: PolicyView) -> Iterator[str]:
    from api.documents.policy import settings_in

    message = f": {found.ack_message}" if found.ack_message else ""
    yield f"{found.engine_id}, version {found.version} ({found.ack_state}{message})"
    yield f"  asked for: {settings_in(found.requested)}"
    yield f"  in force:  {settings_in(found.effective)} (version {found.applied_version})"
    yield f"  SLA {found.requested.get('sla') or 'none'}"
    guards = found.requested.get("guards") or {}
    for name, value in guards.items():
        yield f"  guards.{name}: {_plain(value)}"


def _version_cells(row: PolicyVersionView) -> tuple[str, ...]:
    return str(row.version), minute(row.created_at), row.origin, row.ack_state, row.reason


def _knob_cells(knob: Json) -> tuple[str, ...]:
    # Engines tell their knobs themselves; those of earlier versions say knob_class.
    kind = knob.get("class") or knob.get("knob_class")
    return knob["name"], _plain(knob.get("current")), _room(knob), _plain(kind)


def _room(knob: Json) -> str:
    least, most = knob.get("minimum"), knob.get("maximum")
    if (choices := knob.get("choices")) is not None:
        return ", ".join(map(str, choices))
    ends = [f"{word} {end:g}" for word, end in (("from", least), ("to", most)) if end is not None]
    return " ".join(ends) or "-"


def _differences(before: Json, after: Json, within: str = "") -> Iterator[Json]:
    """Each value that differs, by its path, as in ``caps.max_num_seqs``."""
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{within}{name}.")
        elif one != other:
            yield {"knob": f"{within}{name}", "from": one, "to": other}


def _plain(value: Any) -> str:
    """The value as it is written in a patch, but for null."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
