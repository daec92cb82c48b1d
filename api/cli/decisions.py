"""``gearshift decisions``: what the controller did, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.control_plane import (
    ControlPlane,
    EngineOption,
    NewestOption,
    find_engine_id,
)
from api.cli.grouped import grouped
from api.cli.tables import minute

if TYPE_CHECKING:
    from api.schemas.serving import DecisionView

Json = dict[str, Any]
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
MOST_ID = 2**31 - 1


@grouped(help_order="engine newest")
def list_decisions(
    plane: ControlPlane, engine: EngineOption = None, newest: NewestOption = 20
) -> None:
    """List what the controller decided, newest first."""
    with plane.client() as client:
        of = None if engine is None else find_engine_id(client, engine)
        found = client.list_decisions(of, newest=newest)
    headings = ["id", "at", "did", "why", *(["engine"] if of is None else [])]
    plane.tell_rows("decisions", found, headings, lambda row: _cells(row)[: len(headings)])


@grouped()
def explain(
    decision_id: Annotated[
        int,
        typer.Argument(metavar="ID", min=1, max=MOST_ID, help="As 'decisions list' has it."),
    ],
    plane: ControlPlane,
) -> None:
    """Say why the controller did what it did: what it saw, and what it did not do."""
    with plane.client() as client:
        plane.tell(client.get_decision(decision_id), lambda found: list(_lines(found)))


def _cells(row: DecisionView) -> tuple[str, ...]:
    return str(row.id), minute(row.created_at), _did(row), row.reason, row.engine_id


def _did(row: DecisionView) -> str:
    from api.documents.reasons import ACTIONS

    band = "" if row.band_index is None else f", load band {row.band_index}"
    version = "" if row.policy_version is None else f", policy version {row.policy_version}"
    return f"{ACTIONS.get(row.action, row.action)}{band}{version}"


def _lines(found: DecisionView) -> Iterator[str]:
    from api.documents.policy import settings_in
    from api.documents.reasons import REJECTIONS, meaning

    yield f"{found.id}, {found.created_at:%Y-%m-%d %H:%M:%S} UTC, {found.engine_id}: {_did(found)}"
    yield f"  why: {found.reason}: {meaning(found.reason)}"
    for line in _seen(found.observed):
        yield f"  saw: {line}"
    if found.settings is not None:
        yield f"  settings: {settings_in(found.settings)}"
    for other in found.rejected:
        why = REJECTIONS.get(other["why"], other["why"])
        yield f"  not: load band {other['band_index']}: {why}"


def _seen(document: Json) -> Iterator[str]:
    """What is known; of latencies the numbers of a metric together: ``ttft_ms: mean 695``,
    ``p50 434`` and so on."""
    lines: dict[str, list[str]] = {"": []}
    for name, value in {**document, **document.get("metrics", {})}.items():
        statistic, _, metric = name.partition("_")
        if value is None or isinstance(value, dict):
            continue
        if metric in LATENCIES:
            lines.setdefault(f"{metric}: ", []).append(f"{statistic} {_text(value)}")
        else:
            lines[""].append(f"{name} {_text(value)}")
    for begin, words in lines.items():
        yield begin + ", ".join(words)


def _text(value: Any) -> str:
    from policies.numbers import short

    return short(value) if isinstance(value, float) else str(value)
