"""What the controller sees and remembers, read from heartbeats and kept as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from functools import reduce
from typing import Any

from api.documents.servers import window_in
from engine.spec.measurement import Fidelity, Outcome, RequestTiming
from engine.spec.plan import parse_plan
from engine.spec.settings import Settings
from policies.busy_rate import BusyRate
from policies.capacity_state import CapacityMemory, Queue
from policies.capacity_watch import Look
from policies.controller import ControlMemory
from policies.decision import BeyondBand, SmoothedLoad
from policies.errors import PolicyInputError
from policies.load_history import SLOT_S, LoadSlot
from policies.observation import Observation, TrafficWindow, join_windows
from policies.server_window import ServerWindow, observe_server
from policies.shedding import SheddingMemory
from policies.sla import Sla
from policies.surge import SurgeMemory
from store.models import EngineLoad, Heartbeat
from store.models.base import Json


def observe(
    heartbeats: Sequence[Heartbeat], sla: Sla | None, *, now: datetime
) -> Observation | None:
    """Join the windows that came; None when none came. A gap between them counts as unknown."""
    if not heartbeats:
        return None
    age_s = max(0.0, (now - heartbeats[-1].received_at).total_seconds())
    counted = [found for b in heartbeats if (found := window_in(b.stats)) is not None]
    if counted:  # a server that is not ours: it has no exact samples
        return observe_server(counted, sla, age_s=age_s)
    windows = [
        TrafficWindow(
            window_s=beat.window_s, num_arrived=beat.arrived, timings=tuple(timings_of(beat))
        )
        for beat in heartbeats
    ]
    return join_windows(windows, sla, age_s=age_s, fidelity=Fidelity.MEASURED)


def memory_to_json(memory: ControlMemory) -> Json:
    """The controller's memory as JSON."""
    commanded = memory.commanded
    return asdict(memory) | {"commanded": None if commanded is None else commanded.to_json()}


def memory_from_json(document: Mapping[str, Any] | None) -> ControlMemory:
    """Read what :func:`memory_to_json` wrote; nothing kept is an empty memory.

    An average that is not finite is forgotten: no later window would mend it.
    """
    if not document:
        return ControlMemory()
    commanded, smoothed = document["commanded"], document["smoothed"]
    beyond = document.get("beyond")
    return ControlMemory(
        load_band=document["load_band"],
        band_index=document["band_index"],
        commanded=None if commanded is None else Settings.from_json(commanded),
        smoothed=_read_smoothed(smoothed),
        changed_s=document["changed_s"],
        misses=document["misses"],
        beyond=None if beyond is None else BeyondBand(**beyond),
    )


def capacity_to_json(memory: CapacityMemory) -> Json:
    """The slow loop's memory as JSON."""
    commanded = memory.commanded
    return asdict(memory) | {
        "commanded": None if commanded is None else str(commanded),
        "surge": memory.surge.to_json(),
    }


def capacity_from_json(document: Mapping[str, Any] | None) -> CapacityMemory:
    """Read what :func:`capacity_to_json` wrote; nothing kept is an empty memory. What an earlier
    version kept and this one does not know is left out."""
    if not document:
        return CapacityMemory()
    commanded = document["commanded"]
    known = {field.name for field in fields(CapacityMemory)}
    return CapacityMemory(
        **{
            **{name: value for name, value in document.items() if name in known},
            "changes_s": tuple(document["changes_s"]),
            "enough_since_s": tuple(document.get("enough_since_s") or ()),
            "surge": SurgeMemory.from_json(document.get("surge")),
            "shedding": SheddingMemory(**(document.get("shedding") or {})),
            "busy": BusyRate(**(document.get("busy") or {})),
            "commanded": None if commanded is None else parse_plan(commanded).plan,
        }
    )


def queue_of(heartbeats: Sequence[Heartbeat]) -> Queue | None:
    """What waited when the last heartbeat came, and how many ended a second; None: nobody said."""
    seconds = sum(beat.window_s for beat in heartbeats)
    if not heartbeats or seconds <= 0 or "waiting" not in heartbeats[-1].stats:
        return None
    counted = [found for b in heartbeats if (found := window_in(b.stats)) is not None]
    ended = (
        reduce(ServerWindow.plus, counted).finished
        if counted
        else sum(len(beat.requests) for beat in heartbeats)
    )
    waiting = max(0.0, float(heartbeats[-1].stats["waiting"]))
    running = max(0.0, float(heartbeats[-1].stats.get("running", 0.0)))
    return Queue(waiting=waiting, finished_rps=ended / seconds, running=running, window_s=seconds)


def look_at(
    heartbeats: Sequence[Heartbeat], since_s: float | None, queue: Queue | None
) -> Look | None:
    """What arrived in those that came after ``since_s``; None: none did."""
    fresh = [b for b in heartbeats if since_s is None or b.received_at.timestamp() > since_s]
    fresh = [b for b in fresh if b.window_s > 0 and b.arrived >= 0]
    if not fresh:
        return None
    return Look(
        now_s=fresh[-1].received_at.timestamp(),
        seconds=sum(beat.window_s for beat in fresh),
        requests=float(sum(beat.arrived for beat in fresh)),
        ended=sum(_num_ended(beat) for beat in fresh),
        queue=queue,
    )


def _num_ended(beat: Heartbeat) -> float:
    """Requests that ended after a first token; a server that is not ours tells those that ended."""
    counted = window_in(beat.stats)
    if counted is not None:
        return counted.finished
    return float(sum(bool(request["token_ms"]) for request in beat.requests))


def load_slots(heartbeats: Sequence[Heartbeat]) -> dict[int, LoadSlot]:
    """What arrived, by the minute in which a heartbeat came, as seconds of Unix time.

    Tokens are those of the arrivals, at the mean lengths of what ended in the minute (or in the
    one before, where nothing did).
    """
    minutes: dict[int, list[Heartbeat]] = {}
    for beat in heartbeats:
        start_s = int(beat.received_at.timestamp() // SLOT_S * SLOT_S)
        minutes.setdefault(start_s, []).append(beat)
    slots, lengths = {}, (0.0, 0.0)
    for start_s, beats in sorted(minutes.items()):
        arrived = float(sum(beat.arrived for beat in beats))
        lengths = _mean_lengths(beats) or lengths
        slots[start_s] = LoadSlot(
            start_s=start_s,
            seen_s=sum(beat.window_s for beat in beats),
            requests=arrived,
            input_tokens=arrived * lengths[0],
            output_tokens=arrived * lengths[1],
        )
    return slots


def _mean_lengths(beats: Sequence[Heartbeat]) -> tuple[float, float] | None:
    counted = [found for beat in beats if (found := window_in(beat.stats)) is not None]
    if counted:
        return reduce(ServerWindow.plus, counted).mean_lengths
    requests = [request for beat in beats for request in beat.requests]
    if not requests:
        return None
    inputs = sum(request["input_tokens"] for request in requests)
    outputs = sum(len(request["token_ms"]) for request in requests)
    return inputs / len(requests), outputs / len(requests)


def _read_smoothed(document: Mapping[str, Any] | None) -> SmoothedLoad | None:
    if document is None:
        return None
    try:
        return SmoothedLoad(**document)
    except PolicyInputError:
        return None


def timings_of(beat: Heartbeat) -> list[RequestTiming]:
    """The requests that ended in a window, on the service's clock."""
    received_s = beat.received_at.timestamp()
    timings = []
    for raw in beat.requests:
        scheduled_s = received_s - raw["age_ms"] / 1e3
        timings.append(
            RequestTiming(
                scheduled_s=scheduled_s,
                sent_s=scheduled_s,
                token_s=tuple(scheduled_s + ms / 1e3 for ms in raw["token_ms"]),
                prompt_tokens=raw["input_tokens"],
                outcome=Outcome(raw["outcome"]),
            )
        )
    return timings


def slot_of(row: EngineLoad) -> LoadSlot:
    """A minute as it is kept."""
    return LoadSlot(
        start_s=row.start_s,
        seen_s=row.seen_s,
        requests=row.requests,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
    )


def lengths_of(beats: Iterable[Heartbeat]) -> Iterator[tuple[int, int]]:
    """Input and output tokens of the requests that ended."""
    return (
        (request["input_tokens"], len(request["token_ms"]))
        for beat in beats
        for request in beat.requests
        if request["token_ms"]
    )
