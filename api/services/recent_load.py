"""What an engine was asked for in the last hours, as a workload: times and lengths, no text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from api.documents.control_state import lengths_of, slot_of
from api.services.workloads import PIECE_BYTES, Upload
from policies.load_history import SLOT_S
from store import UnitOfWork
from store.models import EngineLoad, EngineRow
from store.models.workloads import MOST_NAME
from store.workloads import compress
from tuner.workload.observed import draw_minute
from tuner.workload.workload import FloatArray, Workload, WorkloadSource
from tuner.workload.write import TraceForm, trace_text

HOURS_S = 6 * 3600
# Lengths are drawn from the requests that ended in this time.
LENGTHS_S = 600.0
# Fewer requests say nothing about a load; of more, minutes are left out evenly, never the busiest.
LEAST_REQUESTS = 50
MOST_REQUESTS = 20_000
OF_A_SPEC = ("spec", "seed")


def recent_workload(uow: UnitOfWork, engine: EngineRow, *, now_s: float) -> Workload | None:
    """Requests as they came in each minute that is kept, at random moments of it, with lengths
    drawn from those of the last minutes and scaled to the minute's means. None: too few came.

    Minutes of silence or of which nothing is known are left out, so that gaps do not count as rest.
    """
    kept = uow.loads.list_between(engine.id, int(now_s) - HOURS_S, now_s)
    minutes = [row for row in kept if row.requests]
    lengths = _lengths(uow, engine, now_s)
    minutes = _thinned(minutes)
    if not len(lengths) or sum(row.requests for row in minutes) < LEAST_REQUESTS:
        return None
    rng = np.random.default_rng(int(minutes[-1].start_s))
    arrivals = [
        arrival
        for nth, minute in enumerate(minutes)
        for arrival in draw_minute(slot_of(minute), nth * SLOT_S, lengths, rng)
    ]
    spec = f"load of engine {engine.name}"
    text = repr([(a.arrival_s, a.input_tokens, a.output_tokens) for a in arrivals])
    source = WorkloadSource(
        spec=spec,
        seed=0,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        rows=len(arrivals),
        span_s=arrivals[-1].arrival_s - arrivals[0].arrival_s,
    )
    return Workload(arrivals=tuple(arrivals), source=source)


def as_upload(workload: Workload, name: str) -> Upload:
    """The workload as if somebody had uploaded it, to be kept."""
    data = trace_text(workload, TraceForm.CSV).encode()
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    facts = {k: v for k, v in workload.describe().items() if k not in OF_A_SPEC}
    return Upload(
        name=name[:MOST_NAME],
        form=TraceForm.CSV.value,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        facts=facts,
        parts=tuple(compress(piece) for piece in pieces),
    )


def _lengths(uow: UnitOfWork, engine: EngineRow, now_s: float) -> FloatArray:
    """Input and output tokens f8[requests, 2] of what ended lately."""
    since = datetime.fromtimestamp(now_s - LENGTHS_S, UTC)
    found = list(lengths_of(uow.engines.list_heartbeats(engine.id, since=since)))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _thinned(minutes: Sequence[EngineLoad]) -> list[EngineLoad]:
    """Every nth minute and the busiest, so that no more than the most requests are left."""
    total = sum(row.requests for row in minutes)
    every = max(1, int(np.ceil(total / MOST_REQUESTS)))
    busiest = max(minutes, key=lambda row: row.requests, default=None)
    return [row for nth, row in enumerate(minutes) if nth % every == 0 or row is busiest]
