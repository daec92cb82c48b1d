"""Which knobs a serving system that is not ours has, and what of settings it cannot be told.

Its settings are words of its command: whatever changes takes a restart. Modes, orders and bounds on
steps and queues are ours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from api.documents.policy import Change
from engine.policy.document import KnobClass
from engine.spec.errors import PolicyError
from engine.spec.modes import AUTO
from engine.spec.plan import DEFAULT_SHIFT_THRESHOLD
from engine.spec.settings import MOST_CAP, Caps, Order, Settings
from policies.capacity_table import CapacityTable, undominated
from store.models.base import Json
from tuner.launch.why_not import why_not, why_not_caps
from tuner.servers.command import unexpressed

# Nothing was started with less: a server is started anew with its caps.
ENVELOPE = Caps(max_num_seqs=MOST_CAP, max_num_batched_tokens=MOST_CAP)
RESTARTED = ("plan", "caps.max_num_seqs", "caps.max_num_batched_tokens")


def knobs(settings: Settings, most_devices: int | None) -> list[Json]:
    """The knobs there are, as an engine of ours lists its own."""
    caps = settings.caps
    values = (str(settings.plan), caps.max_num_seqs, caps.max_num_batched_tokens)
    limits = (most_devices, None, None)
    return [
        {
            "name": name,
            "class": KnobClass.RESTART.value,
            "current": value,
            "minimum": 1,
            "maximum": limit,
            "choices": None,
            "hot_choices": None,
            "measured_cost_s": None,
            "ways": [],
        }
        for name, value, limit in zip(RESTARTED, values, limits, strict=True)
    ]


def expressible(settings: Settings) -> Settings:
    """The part of ``settings`` that such a system can be started with."""
    caps = replace(settings.caps, max_step_ms=None, max_queue=None)
    return Settings(plan=replace(settings.plan, shift=False), caps=caps)


def left_out(system: str, settings: Settings) -> tuple[str, ...]:
    """What :func:`expressible` leaves out, in words."""
    found = list(unexpressed(system, settings))
    if settings.plan.shift:
        found.append(f"{system} has no Shift: every step runs in base")
    if settings.pin != AUTO:
        found.append(f"{system} has no modes: mode {settings.pin} was left out")
    return tuple(found)


def check_settings(system: str, settings: Settings) -> None:
    """Refuse what no server of this system can run.

    Raises:
        PolicyError: a knob that it does not have, or a plan or caps that it cannot run.
    """
    if settings.pin != AUTO:
        raise PolicyError(f"/mode: {_no_such(system)}: its steps have one mode")
    if settings.plan.shift or settings.threshold_tokens != DEFAULT_SHIFT_THRESHOLD:
        raise PolicyError(f"/shift: {_no_such(system)}: its steps have one mode")
    if settings.order is not Order.FCFS:
        raise PolicyError(f"/scheduler: {_no_such(system)}: it has an order of its own")
    if settings.admission is not None:
        raise PolicyError(f"/admission: {_no_such(system)}: it lets in whatever comes")
    for name in ("max_step_ms", "max_queue"):
        if getattr(settings.caps, name) is not None:
            raise PolicyError(f"/caps/{name}: {_no_such(system)}: its flags have no word for it")
    if (reason := why_not(system, settings.plan)) is not None:
        raise PolicyError(f"/plan: {reason}")
    if (reason := why_not_caps(system, settings.caps)) is not None:
        raise PolicyError(f"/caps: {reason}")


def check_restart(name: str, before: Settings, after: Settings, *, can_restart: bool) -> None:
    """Refuse another plan or other caps where nobody restarts the server.

    Raises:
        PolicyError: with the class that the change needs.
    """
    if before == after or can_restart:
        return
    knob = "/plan" if before.plan != after.plan else "/caps"
    raise PolicyError(
        f"{knob}: the service cannot restart {name}: restart it yourself (see its advice) and "
        "observe it again with what it runs then, or name a hook for it in GEARSHIFT_SERVERS_FILE",
        needs=KnobClass.RESTART,
    )


def as_restarts(changes: Sequence[Change]) -> list[Change]:
    """The changes with what they cost such a server."""
    return [
        replace(change, knob_class=KnobClass.RESTART) if change.knob in RESTARTED else change
        for change in changes
    ]


def _no_such(system: str) -> str:
    return f"a {system} server has no such knob"


def table_for(system: str, table: CapacityTable) -> CapacityTable | None:
    """The entries that the system can run, as it can be told them; None: there is none."""
    entries = [
        replace(entry, settings=expressible(entry.settings))
        for entry in table.entries
        if not why_not(system, entry.settings.plan)
        and not why_not_caps(system, entry.settings.caps)
    ]
    return replace(table, entries=undominated(entries)) if entries else None
