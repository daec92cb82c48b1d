"""``gearshift rollouts start``, ``list``, ``show`` and ``cancel``: policies proven before they
spread."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.answers import is_recommendation
from api.cli.common import end, fail, log, print_json, print_lines
from api.cli.control_plane import SERVICE, KeyOption, ServiceOption, open_client
from api.cli.engine_options import JsonOption
from api.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from api.schemas.rollouts import RolloutDetail, RolloutView

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As 'rollouts list' has it: ro_...")]
MOST_S = 10**8
LEAST_WIDTH = 140


def start(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="PATCH|REC_ID",
            help='JSON Merge Patch of the policy, as in \'{"caps": {"max_num_seqs": 96}}\', or a '
            "recommendation's id.",
        ),
    ],
    engine: Annotated[str, typer.Option(metavar="ID", help="The engine, as eng_...")],
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
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
    as_json: JsonOption = False,
) -> None:
    """Roll a policy out: simulated, then by turns with what runs now, then alone.

    It is taken back where attainment is worse, or where that is not known in time. Ends with 3
    where --follow sees it end so.
    """
    given = {"slice_s": slice_s, "max_exposed_s": max_exposed_s, "tolerance": tolerance}
    body = {
        "engine_id": engine,
        **_candidate(candidate),
        "reason": reason,
        "replay": {"skip": skip_replay, "hardware": hardware, "cost_model_id": cost_model},
        "limits": {name: value for name, value in given.items() if value is not None},
    }
    with open_client(service, service_key) as client:
        rollout = client.create_rollout(body)
        if follow:
            for event in client.follow_rollout(rollout.id):
                log(event.told)
        found = client.get_rollout(rollout.id)
    _tell(found, as_json=as_json)
    if follow and found.state.value != "done":
        end(ExitCode.NOT_MET)


def list_rollouts(
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
    engine: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this engine only, as eng_...")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, newest first."""
    with open_client(service, service_key) as client:
        found = client.list_rollouts(engine_id=engine)
    if as_json:
        print_json({"rollouts": [row.to_json() for row in found]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "engine", "state", "why", "since", box=None)
    for row in found:
        since = row.created_at.isoformat(timespec="minutes")[:16]
        table.add_row(row.id, row.engine_id, row.state.value, f"{row.code}: {row.reason}", since)
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    console.print(table)


def show(
    rollout_id: IdArgument,
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a rollout stands, and every state it has had."""
    with open_client(service, service_key) as client:
        found = client.get_rollout(rollout_id)
    _tell(found, as_json=as_json)


def cancel(
    rollout_id: IdArgument,
    service: ServiceOption = SERVICE,
    service_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a rollout; the engine is asked for what it ran before."""
    with open_client(service, service_key) as client:
        client.cancel_rollout(rollout_id)
        found = client.get_rollout(rollout_id)
    _tell(found, as_json=as_json)


def _candidate(text: str) -> dict[str, Any]:
    if is_recommendation(text):
        return {"recommendation_id": text}
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"{text!r}: neither a recommendation's id (rec_...) nor JSON ({error})")
    if not isinstance(patch, dict):
        fail(f'{text!r}: write a patch as in {{"caps": {{"max_num_seqs": 96}}}}')
    return {"patch": patch}


def _tell(found: RolloutDetail, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    else:
        print_lines(_lines(found))


def _lines(found: RolloutDetail) -> list[str]:
    undecided = ", undecided" if found.is_undecided else ""
    lines = [f"{found.id} on {found.engine_id}: {found.state} ({found.code}{undecided})"]
    lines += [
        f"  {turn['at'][:19]} {turn['state']}: {turn['reason']}" for turn in found.transitions
    ]
    return lines + _canary_lines(found)


def _canary_lines(found: RolloutView) -> list[str]:
    if (canary := found.canary) is None or canary.effect.mean is None:
        return []
    effect = canary.effect
    return [
        f"  candidate {canary.candidate_attainment:.3f}, control {canary.control_attainment:.3f} "
        f"over {canary.pairs} pairs ({canary.set_aside} set aside); effect {effect.low:+.3f} to "
        f"{effect.high:+.3f}; exposed {canary.exposed_s:.0f} s, {canary.exposed_requests} requests"
    ]
