"""An engine's traffic as it unfolds: heartbeats gathered into bins of a few seconds."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from api.documents.control_state import observe
from policies.sla import Sla
from store.models import Heartbeat

BIN_S = 5
MOST_BINS = 120


@dataclass(frozen=True, kw_only=True)
class Bin:
    """``BIN_S`` seconds from ``begin``. ``metrics`` are by SLA word, as ``p95_ttft_ms``; what
    nothing was seen of is not in them. ``kv_usage`` is a share, 0 to 1, if it is told."""

    begin: datetime
    metrics: dict[str, float]
    attainment: float | None
    rate_rps: float
    running: int
    waiting: int
    kv_usage: float | None


@dataclass(kw_only=True)
class StepTotal:
    """Steps of one mode and size class."""

    steps: int = 0
    seconds: float = 0.0


class LiveSeries:
    """The newest :data:`MOST_BINS` bins of one engine, fed with its heartbeats in their order.

    Requests are kept only until their bin is over; a bin without heartbeats is left out, since
    missing data is not silence.
    """

    def __init__(self) -> None:
        self._sla: Sla | None = None
        self._closed: deque[Bin] = deque(maxlen=MOST_BINS)
        self._open: list[Heartbeat] = []
        self._last_id = 0
        self._steps: deque[tuple[datetime, dict[tuple[str, int], StepTotal]]] = deque()

    @property
    def since(self) -> datetime | None:
        """What came before is known; None: nothing has come."""
        return self._open[0].received_at if self._open else None

    def feed(self, beats: Sequence[Heartbeat], sla: Sla | None) -> None:
        """Take in what is new among ``beats``; from now on requests are judged by ``sla``."""
        self._sla = sla
        for beat in beats:
            if beat.id <= self._last_id:
                continue
            self._last_id = beat.id
            if self._open and _begin(self._open[0]) != _begin(beat):
                self._close()
            self._open.append(beat)

    def bins(self) -> list[Bin]:
        """Oldest first; the last one is not over yet."""
        return [*self._closed, *([_bin(self._open, self._sla)] if self._open else [])]

    def step_ms(self) -> dict[str, list[tuple[int, float]]]:
        """Mean milliseconds of a step, for each mode, by the most tokens of its size class."""
        totals: dict[tuple[str, int], StepTotal] = defaultdict(StepTotal)
        for _, found in (*self._steps, (None, _totals(self._open))):
            for key, total in found.items():
                totals[key].steps += total.steps
                totals[key].seconds += total.seconds
        by_mode: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for (mode, size), total in sorted(totals.items()):
            by_mode[mode].append((size, total.seconds / total.steps * 1e3))
        return by_mode

    def _close(self) -> None:
        self._closed.append(_bin(self._open, self._sla))
        self._steps.append((_begin(self._open[0]), _totals(self._open)))
        while self._steps[0][0] < self._steps[-1][0] - timedelta(seconds=BIN_S * MOST_BINS):
            self._steps.popleft()
        self._open = []


def _begin(beat: Heartbeat) -> datetime:
    seconds = beat.received_at.timestamp()
    return datetime.fromtimestamp(seconds // BIN_S * BIN_S, UTC)


def _bin(beats: Sequence[Heartbeat], sla: Sla | None) -> Bin:
    seen = observe(beats, sla, now=beats[-1].received_at)
    stats = beats[-1].stats
    return Bin(
        begin=_begin(beats[0]),
        metrics={} if seen is None else seen.metrics,
        attainment=None if seen is None or seen.report is None else seen.report.attainment,
        rate_rps=sum(b.arrived for b in beats) / sum(b.window_s for b in beats),
        running=stats.get("running", 0),
        waiting=stats.get("waiting", 0),
        kv_usage=stats.get("kv_usage"),
    )


def _totals(beats: Sequence[Heartbeat]) -> dict[tuple[str, int], StepTotal]:
    totals: dict[tuple[str, int], StepTotal] = defaultdict(StepTotal)
    for beat in beats:
        for step in beat.steps:
            total = totals[step["mode"], step["tokens_up_to"]]
            total.steps += step["steps"]
            total.seconds += step["seconds"]
    return totals
