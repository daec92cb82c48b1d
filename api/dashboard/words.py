"""What words of the service mean, for people: standings, reasons, states."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from api.documents.policy import settings_in
from api.documents.reasons import meaning
from api.services.overview import EngineOverview, Standing
from engine.spec.errors import EngineError
from store.models import JobState
from store.models.base import utc_now

NONE = "–"
_STANDINGS: dict[Standing, tuple[str, str, str]] = {
    Standing.CONDITION: ("bad", "condition", ""),
    Standing.REFUSED: ("bad", "refused", "the engine refused its newest policy"),
    Standing.UNHEALTHY: ("bad", "unhealthy", "its ranks keep failing: see the engine's log"),
    Standing.SILENT: ("bad", "silent", "no heartbeat: see whether the engine runs"),
    Standing.MISSED: ("warn", "SLA missed", ""),
    Standing.CHANGING: ("warn", "changing", "waits for the engine to apply"),
    Standing.FINE: ("good", "fine", ""),
    Standing.ENDED: ("none", "ended", "it said goodbye; its history stays"),
}
JOB_TONES: dict[JobState, str] = {
    JobState.QUEUED: "none",
    JobState.RUNNING: "warn",
    JobState.CANCELLING: "warn",
    JobState.SUCCEEDED: "good",
    JobState.FAILED: "bad",
    JobState.CANCELLED: "none",
    JobState.INFEASIBLE: "bad",
}
CLASSES = {
    "hot": "at the next step",
    "drain": "as running requests finish",
    "reshape": "ranks restart, requests are kept",
    "restart": "the engine must be started anew",
}


def standing(found: EngineOverview) -> tuple[str, str, str]:
    """Tone, word and reason of how an engine stands."""
    tone, word, reason = _STANDINGS[found.standing]
    own = meaning(found.reason)
    return tone, word, "; ".join(part for part in (reason, own) if part)


def plan_of(policy: dict[str, Any]) -> str:
    """A policy's plan as it is typed on a command line."""
    try:
        return settings_in(policy).plan_text
    except EngineError:
        return NONE


def settings_of(policy: dict[str, Any]) -> str:
    """Plan, thresholds and caps in one line."""
    try:
        return str(settings_in(policy))
    except EngineError:
        return NONE


def share(value: float | None) -> str:
    """0.987 as 98.7 %."""
    return NONE if value is None else f"{value * 100:.1f} %"


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def mode_share(shares: dict[str, float]) -> str:
    """As in ``base 12 %, shift 88 %``: of step time."""
    return ", ".join(f"{mode} {part * 100:.0f} %" for mode, part in shares.items()) or NONE


def at(when: datetime | None) -> str:
    """A time of day in UTC, with its date when it is not today's."""
    if when is None:
        return NONE
    form = "%H:%M:%S" if when.date() == utc_now().date() else "%Y-%m-%d %H:%M"
    return f"{when.astimezone(UTC):{form}} UTC"


def span(seconds: float) -> str:
    """A length of time: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
