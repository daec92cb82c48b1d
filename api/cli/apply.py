"""``gearshift apply``: the settings of an answer, on an engine that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.answers import (
    ChoiceOption,
    answering,
    find_answer,
    is_recommendation,
    open_client,
)
from api.cli.changes import change_document, tell_change
from api.cli.common import fail
from api.cli.control_plane import asking, find_engine_id, no_key
from api.cli.engine_options import JsonOption, is_http_url
from api.cli.grouped import grouped
from api.cli.key_options import CONTROL_KEY_VARIABLE, ServerKey, key_option

if TYPE_CHECKING:
    from engine.spec.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Target:
    """The engine: by its own address, or as the control plane knows it."""

    engine: Annotated[
        str,
        typer.Option(
            metavar="URL|ID|NAME", help="The engine's address; with --service its id or name."
        ),
    ]
    service: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Control plane to apply a recommendation through."),
    ] = None
    access: ServerKey
    service_key: Annotated[
        str | None, key_option(CONTROL_KEY_VARIABLE, "The control plane's key.")
    ] = None

    def __post_init__(self) -> None:
        """End on an address that is none."""
        from tuner.load.urls import full_url

        option, url = ("--engine", self.engine)
        if self.service is not None:
            option, url = ("--service", self.service)
        if not is_http_url(full_url(url)):
            fail(f"{option} {url!r}: write it as in http://127.0.0.1:8000")


@grouped(help_order="source engine service dry_run choice api_key api_key_file service_key reason")
def apply(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|ID", help="Report of plan --out or tune --out, or rec_ID."),
    ],
    target: Target,
    choice: ChoiceOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would change, and at what cost.")
    ] = False,
    reason: Annotated[
        str, typer.Option(help="Why, for the control plane's audit.")
    ] = "gearshift apply",
    as_json: JsonOption = False,
) -> None:
    """Apply what plan or tune recommends to a running engine, and say what changed.

    At the engine itself by its knob plane (--engine URL); through a control plane as the engine's
    next policy, with its schedule for the controller (--service URL --engine ID).
    """
    if target.service is None:
        found = find_answer(source, choice)
        document = _patch(target, found.settings, is_dry_run=dry_run)
    else:
        if not is_recommendation(source) or choice is not None:
            fail("--service applies a recommendation, by its id: rec_...; a file goes by --engine")
        document = _through_service(source, target, reason, is_dry_run=dry_run)
    show = asking(target.service or "", f"policies show {document['engine']}")
    tell_change(document, as_json=as_json, show=show)


def _patch(target: Target, settings: Settings, *, is_dry_run: bool) -> dict[str, Any]:
    """What the engine says of the change, made or not."""
    from api.clients.engine_client import EngineClient

    with answering(target.engine):
        client = EngineClient(target.engine, target.access.key)
        _, etag = client.get_policy()
        answer = client.patch_policy(_chosen(settings), etag=etag, is_dry_run=is_dry_run)
        return {
            "engine": target.engine,
            "is_dry_run": is_dry_run,
            "settings": str(settings),
            "changes": answer["diff"],
            "class": answer["class"],
            "version": answer["effective"]["version"],
            "seconds": answer.get("seconds"),
            "transition": answer.get("transition"),
            "effect": None,
            "effect_missing": None,
            "warnings": answer["warnings"],
        }


def _chosen(settings: Settings) -> dict[str, Any]:
    """What the search chose, as a merge patch; the order of requests and a limit on those that
    wait are the operator's."""
    patch = settings.to_json()
    del patch["scheduler"]
    if patch["caps"]["max_queue"] is None:
        del patch["caps"]["max_queue"]
    return patch


def _through_service(
    recommendation_id: str, target: Target, reason: str, *, is_dry_run: bool
) -> dict[str, Any]:
    """What the control plane says of the engine's next policy, written or not."""
    from engine.spec.settings import Settings

    assert target.service is not None, "without a control plane the engine is asked itself"
    if target.service_key is None:
        fail(no_key(target.service))
    with (
        answering(target.service),
        open_client(target.service, target.service_key) as client,
    ):
        document = client.get_recommendation(recommendation_id).recommendation or {}
        engine_id = find_engine_id(client, target.engine)
        answer = client.apply_recommendation(
            recommendation_id, engine_id, is_dry_run=is_dry_run, reason=reason
        )
        return change_document(answer, Settings.from_json(document["settings"]))
