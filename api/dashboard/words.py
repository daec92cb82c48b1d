"""What words of the service mean, for people: standings, reasons, states."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from api.documents.policy import settings_in
from api.documents.reasons import meaning
from api.schemas.observed import UNNAMED
from api.schemas.serving import EngineView
from api.services.overview import EngineOverview, Standing
from engine.spec.errors import EngineError
from policies.advice import AdviceReason
from policies.numbers import short_beside
from policies.rollout import RolloutReason
from store.models import JobState, RolloutState, Sight
from store.models.base import utc_now

NONE = "–"
_STANDINGS: dict[Standing, tuple[str, str, str]] = {
    Standing.CONDITION: ("bad", "condition", ""),
    Standing.REFUSED: ("bad", "refused", "the engine refused its newest policy"),
    Standing.UNHEALTHY: ("bad", "unhealthy", "its ranks keep failing: see the engine's log"),
    Standing.SILENT: (
        "bad",
        "silent",
        "no heartbeat: see whether it runs; if it was killed, gearshift engines forget",
    ),
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
ADVICE: dict[AdviceReason, tuple[str, str]] = {
    AdviceReason.NO_DATA: ("none", "Nothing is known of its load: it stays as it is."),
    AdviceReason.HOLDS: ("good", "It may stay as it is."),
    AdviceReason.LOAD_UP: ("warn", "It should get more devices: the load needs more."),
    AdviceReason.LOAD_DOWN: ("warn", "Fewer devices would do for this load."),
    AdviceReason.OTHER_PLAN: ("warn", "Another plan serves this load better."),
    AdviceReason.BEYOND_TABLE: ("bad", "No entry of its capacity table carries this load."),
}
SIGHTS: dict[Sight, str] = {
    Sight.NEW: "not looked at yet",
    Sight.SEEN: "seen",
    Sight.RESTARTED: "seen; its counters began anew",
    Sight.RESTARTING: "restarting",
    Sight.NO_SERIES: "answers, without the series of its system",
    Sight.UNREADABLE: "answers what cannot be read",
    Sight.TOO_LARGE: "answers too much",
    Sight.REDIRECTED: "sends elsewhere, which is not followed",
    Sight.REFUSED: "refuses the look",
    Sight.TIMED_OUT: "answers too late",
    Sight.UNREACHABLE: "not reachable",
    Sight.FORBIDDEN_ADDRESS: "its address must not be called",
}
ROLLOUTS: dict[RolloutState, tuple[str, str]] = {
    RolloutState.REPLAYING: ("warn", "prepared"),
    RolloutState.CANARY: ("warn", "takes turns with what runs"),
    RolloutState.FULL: ("warn", "asked for, not applied yet"),
    RolloutState.DONE: ("good", "done"),
    RolloutState.ROLLED_BACK: ("bad", "rolled back"),
    RolloutState.REFUSED: ("bad", "refused: the engine was not touched"),
    RolloutState.CANCELLED: ("none", "cancelled"),
}
ROLLOUT_REASONS: dict[str, str] = {
    RolloutReason.CREATED: "started: the last hours are simulated first, unless skipped",
    RolloutReason.REPLAY_SKIPPED: "it was not simulated first, as asked",
    RolloutReason.REPLAY_PASSED: "simulated, it was not worse",
    RolloutReason.REPLAY_WORSE: "simulated, it was worse",
    RolloutReason.REPLAY_FAILED: "it could not be simulated",
    RolloutReason.NOT_WORSE: "it did not serve worse",
    RolloutReason.REGRESSION: "it served worse",
    RolloutReason.EXPOSURE_CAP: "undecided when it had served as long as it may",
    RolloutReason.TIME_CAP: "undecided when its time was over",
    RolloutReason.LOAD_ABOVE_CAPACITY: "the load rose above what the plan carries",
    RolloutReason.ENGINE_REFUSED: "the engine refused it",
    RolloutReason.IMPOSSIBLE: "it cannot be asked for any more",
    RolloutReason.SUPERSEDED: "somebody else changed the policy",
    RolloutReason.CANCELLED: "cancelled by hand",
    RolloutReason.IN_FORCE: "the engine runs it",
}
# What takes turns in a rollout.
ARMS = {"candidate": "the candidate", "control": "what ran before"}
# Who restarts an observed server.
RESTARTERS = {
    "hand": "you: the service cannot",
    "hook": "its hook",
    "command": "the service, by its command",
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
    if found.standing is Standing.SILENT and found.engine.system is not None:
        reason = "its metrics do not arrive: check that it runs, and its address"
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


def devices_of(policy: dict[str, Any]) -> int:
    """Devices that a policy's plan uses."""
    plan = policy["plan"]
    return int(plan["dp"] * plan["pp"] * plan["sp"] * plan["tp"])


def model_of(engine: EngineView) -> str:
    """The model that an engine serves; of an observed server also what serves it."""
    if engine.system is None:
        return engine.model_name
    name = "not named" if engine.model_name == UNNAMED else engine.model_name
    return f"{name} ({engine.system}, observed)"


def job_title(spec: dict[str, Any]) -> str:
    """What a job tunes: llama-3.1-8b on 2xh200."""
    hardware = spec.get("hardware", "local")
    where = "this machine" if hardware == "local" else hardware
    return f"{str(spec.get('model_dir', '?')).rstrip('/').rpartition('/')[2]} on {where}"


def share(value: float | None) -> str:
    """0.987 as 98.7 %; what is nearly all is not told as all."""
    if value is None:
        return NONE
    text = f"{value * 100:.1f}"
    if value < 1 and text == "100.0":
        text = short_beside(value * 100, 100.0)
    return f"{text}\u00a0%"


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def number_short(value: float | None) -> str:
    """A number with decimals only where they matter: 4.1, 57.4, 872, 11,199."""
    return number(value, 1 if value is None or abs(value) < 100 else 0)


def signed(value: float, unit: str) -> str:
    """+3.9 %, -0.2 points; what rounds to nothing has no minus."""
    return f"{round(value, 1) + 0.0:+.1f} {unit}"


def mode_share(shares: dict[str, float]) -> str:
    """Shares of step time, as in ``base 12 %, shift 88 %``."""
    return ", ".join(f"{mode} {part * 100:.0f} %" for mode, part in shares.items()) or NONE


def at(when: datetime | None) -> str:
    """A time of day in UTC, with its date when it is not today's."""
    if when is None:
        return NONE
    form = "%H:%M:%S" if when.date() == utc_now().date() else "%Y-%m-%d %H:%M"
    return f"{when.astimezone(UTC):{form}}\u00a0UTC"


def size(num_bytes: int) -> str:
    """The size of a file: 812 B, 3.4 kB, 12.0 MB."""
    for unit, bytes_each in (("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= bytes_each:
            return f"{num_bytes / bytes_each:.1f} {unit}"
    return f"{num_bytes} B"


def span(seconds: float) -> str:
    """A length of time: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    return _two(whole // 3600, "h", whole % 3600 // 60, "min")


def _two(most: int, unit: str, rest: int, smaller: str) -> str:
    return f"{most} {unit} {rest} {smaller}" if rest else f"{most} {unit}"
