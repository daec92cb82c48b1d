"""``gearshift rollouts``: policies proven before they spread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.answers import is_recommendation
from api.cli.common import end, log
from api.cli.control_plane import ControlPlane, EngineOption, find_engine_id
from api.cli.exit_codes import ExitCode
from api.cli.grouped import grouped
from api.cli.interrupts import watched
from api.cli.patches import PATCH_HELP, read_patch
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.schemas.rollouts import RolloutDetail, RolloutView

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'rollouts list' has it: ro_...")]
MOST_S = 10**8


@grouped(help_order="candidate engine service service_key hardware")
def start(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="PATCH|REC_ID",
            help=f"{PATCH_HELP}, or a recommendation's id.",
        ),
    ],
    engine: Annotated[
        str, typer.Option(metavar="ID|NAME", help="The engine: eng_..., or its name.")
    ],
    plane: ControlPlane,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Simulate it on this described hardware first, as 8xh200; by default "
            "with the step times of the recommendation in force."
        ),
    ] = None,
    cost_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Simulate it with these step times: cm_...")
    ] = None,
    skip_replay: Annotated[
        bool, typer.Option("--skip-replay", help="Do not simulate it first.")
    ] = False,
    slice_s: Annotated[
        float | None, typer.Option(min=1, max=MOST_S, help="Seconds of one turn; by default 30.")
    ] = None,
    max_exposed_s: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=MOST_S,
            help="Seconds it may serve until it is decided; by default 1800, and twice as long "
            "where few requests have come by then.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, help="Worse is: attainment lower by more than this; by default 0.02."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "gearshift rollouts start",
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end; tell how.")] = False,
) -> None:
    """Roll a policy out: simulated, then by turns with what runs now, then alone.

    It is taken back where attainment is worse, or where that is not known in time. Ends with 3
    where --follow sees it end so.
    """
    given = {"slice_s": slice_s, "max_exposed_s": max_exposed_s, "tolerance": tolerance}
    body = {
        **_candidate(candidate),
        "reason": reason,
        "replay": {"skip": skip_replay, "hardware": hardware, "cost_model_id": cost_model},
        "limits": {name: value for name, value in given.items() if value is not None},
    }
    with plane.client() as client:
        rollout = client.create_rollout({**body, "engine_id": find_engine_id(client, engine)})
        if follow:
            _follow(client, rollout, plane)
            return
        plane.tell(client.get_rollout(rollout.id), _lines)
    if not plane.as_json:
        log(f"see how it goes: {plane.command(f'rollouts follow {rollout.id}')}")


@grouped()
def list_rollouts(plane: ControlPlane, engine: EngineOption = None) -> None:
    """List rollouts, newest first."""
    with plane.client() as client:
        of = None if engine is None else find_engine_id(client, engine)
        found = client.list_rollouts(engine_id=of)
        names = {known.id: known.name for known in client.list_engines()} if found else {}
    plane.tell_rows(
        "rollouts",
        found,
        ("id", "state", "why", "made", "engine"),
        lambda row: (
            row.id,
            row.state.value,
            row.code,
            minute(row.created_at),
            names.get(row.engine_id, row.engine_id),
        ),
    )


@grouped()
def show(rollout_id: IdArgument, plane: ControlPlane) -> None:
    """Say how a rollout stands, and every state it has had."""
    with plane.client() as client:
        plane.tell(client.get_rollout(rollout_id), _lines)


@grouped()
def follow_one(rollout_id: IdArgument, plane: ControlPlane) -> None:
    """Tell what a rollout does until it ends. Ends with 3 where it ends otherwise than done."""
    with plane.client() as client:
        _follow(client, client.get_rollout(rollout_id), plane)


@grouped()
def cancel(rollout_id: IdArgument, plane: ControlPlane) -> None:
    """End a rollout; the engine is asked for what it ran before."""
    with plane.client() as client:
        client.cancel_rollout(rollout_id)
        plane.tell(client.get_rollout(rollout_id), _lines)


def _follow(client: Client, rollout: RolloutView, plane: ControlPlane) -> None:
    """Tell every event, and how it stands at the end."""
    with watched(plane.command(f"rollouts follow {rollout.id}")):
        for event in client.follow_rollout(rollout.id):
            state = event.data.get("state")
            log(event.told if state is None else f"{state}: {event.told}")
    found = client.get_rollout(rollout.id)
    plane.tell(found, _lines)
    if found.state.value != "done":
        end(ExitCode.NOT_MET)


def _candidate(text: str) -> dict[str, Any]:
    if is_recommendation(text):
        return {"recommendation_id": text}
    return {"patch": read_patch(text, or_else="a recommendation's id (rec_...)")}


def _lines(found: RolloutDetail) -> list[str]:
    undecided = ", undecided" if found.is_undecided else ""
    lines = [f"{found.id} on {found.engine_id}: {found.state} ({found.code}{undecided})"]
    lines += [
        f"  {turn['at'][:19].replace('T', ' ')} UTC {turn['state']}: {turn['reason']}"
        for turn in found.transitions
    ]
    return lines + _canary_lines(found)


def _canary_lines(found: RolloutView) -> list[str]:
    if (canary := found.canary) is None or canary.effect.mean is None:
        return []
    effect = canary.effect
    return [
        f"  SLA attainment: candidate {canary.candidate_attainment:.3f}, control "
        f"{canary.control_attainment:.3f} over {canary.pairs} pairs ({canary.set_aside} set aside)",
        f"  difference between {effect.low:+.3f} and {effect.high:+.3f}; the candidate served "
        f"{canary.exposed_s:.0f} s, {canary.exposed_requests} requests",
    ]
