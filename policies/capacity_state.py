"""What the slow loop sees, remembers and answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from engine.spec.plan import ParallelPlan
from policies.busy_rate import BusyRate
from policies.capacity_table import CapacityTable, CarriedRate
from policies.clock import ahead_s, back
from policies.decision import Action
from policies.errors import PolicyInputError
from policies.forecast import Forecast
from policies.shedding import SheddingLimits, SheddingMemory
from policies.surge import SurgeLimits, SurgeMemory

HOUR_S = 3600.0


class CapacityReason(StrEnum):
    """Why. The set is closed: metrics and the audit count by it."""

    NO_DATA = "no_data"
    STALE_DATA = "stale_data"
    HOLDS = "holds"
    LOAD_UP = "load_up"
    LOAD_DOWN = "load_down"
    SLA_MISSED = "sla_missed"
    BEYOND_TABLE = "beyond_table"
    DWELL = "dwell"
    GUARD_INTERVAL = "guard_interval"
    GUARD_PER_HOUR = "guard_per_hour"
    NOT_WORTH_IT = "not_worth_it"
    DRIFT_PAUSED = "drift_paused"


@dataclass(frozen=True, kw_only=True)
class CapacityLimits:
    """How eager the slow loop is.

    The horizon's peak must be carried with ``chance``, and ``headroom`` on top. Fewer devices are
    taken only where the smaller entry would have done, with ``down_headroom`` on top, for as long
    as to give devices back and to start them again costs (``policies.giving_back``), for
    ``dwell_s`` at least; for longer, up to ``longest_dwell_s``, where loads above it were seen to
    come back later than that. ``min_interval_s`` lies between two changes and ``max_per_h`` of them
    in an hour (the policy's guards; 0: none at all); the last of these is kept for the way up.
    Nothing is learned from misses until ``settle_s`` after a change or an overload. ``shedding``:
    when requests are turned away. ``surge``: how surely a rise is told.

    Raises:
        PolicyInputError: a limit outside its range.
    """

    chance: float = 0.9
    headroom: float = 0.0
    down_headroom: float = 0.0
    dwell_s: float = 60.0
    longest_dwell_s: float = 1800.0
    min_interval_s: float = 60.0
    max_per_h: int = 4
    settle_s: float = 120.0
    max_data_age_s: float = 60.0
    max_devices: int | None = None
    shedding: SheddingLimits = field(default_factory=SheddingLimits)
    surge: SurgeLimits = field(default_factory=SurgeLimits)

    def __post_init__(self) -> None:
        checks = (
            (0 < self.chance < 1, f"chance={self.chance}: must be above 0 and below 1"),
            (self.headroom >= 0, f"headroom={self.headroom}: below 0"),
            (self.down_headroom >= 0, f"down_headroom={self.down_headroom}: below 0"),
            (self.dwell_s >= 0, f"dwell_s={self.dwell_s}: below 0"),
            (
                self.longest_dwell_s >= 0,
                f"longest_dwell_s={self.longest_dwell_s}: below 0",
            ),
            (self.min_interval_s >= 0, f"min_interval_s={self.min_interval_s}: below 0"),
            (self.max_per_h >= 0, f"max_per_h={self.max_per_h}: below 0"),
        )
        for is_fine, message in checks:
            if not is_fine:
                raise PolicyInputError(f"capacity limits: {message}")


@dataclass(frozen=True, kw_only=True)
class SwitchCost:
    """What going to an entry takes: ``ready_s`` until it carries requests, ``away_s`` of them
    without any rank serving (0 where old and new serve side by side). ``back_s``: for how long each
    device that is freed would be busy without serving if it was given back and started again, of
    that ``back_start_s`` to start."""

    ready_s: float = 0.0
    away_s: float = 0.0
    back_s: float = 0.0
    back_start_s: float = 0.0

    def missed_requests(self, rate_rps: float, capacity_rps: float) -> float:
        """Requests that wait because of the change: those that come while ranks are away, and
        those that come while the queue of the former is worked off."""
        spare = 1 - min(rate_rps / capacity_rps, 0.95)
        return rate_rps * self.away_s / spare


@dataclass(frozen=True, kw_only=True)
class CapacityMemory:
    """What one decision hands to the next.

    ``changes_s``: when capacity was changed in the last hour. ``enough_since_s``: since when each
    entry of the table would do (None: it would not). ``look_s``: when to look again, as the first
    of these that saves devices may be gone to, or a change to more pays off. ``overloaded_s``: when
    more came last than the entry in force carries. ``correction``: the share of the table's rates
    that this engine was seen to carry, from 0.5 to 1. ``commanded``: the plan that should be in
    force. ``decided_s``: when it was looked at last. ``shedding``: what was done about requests
    beyond that. ``request_size``: requests of the table's mix that one request amounted to lately,
    and ``met_rps`` those of them that met the SLA a second while nobody was turned away (None: not
    seen since the last change), both smoothed. ``beyond_s``: when more came last than any entry
    carries. ``surge``: what arrivals told of a rise; ``flooded_s``: since when more waits than the
    entry in force works off in time. ``caution``: the share of the forecast's margin that is held,
    from 0 to 1: less where hardly a request misses. ``busy``: how many requests begin while a queue
    is felt.
    """

    changes_s: tuple[float, ...] = ()
    enough_since_s: tuple[float | None, ...] = ()
    look_s: float | None = None
    overloaded_s: float | None = None
    correction: float = 1.0
    commanded: ParallelPlan | None = None
    decided_s: float | None = None
    shedding: SheddingMemory = field(default_factory=SheddingMemory)
    request_size: float = 1.0
    met_rps: float | None = None
    beyond_s: float | None = None
    surge: SurgeMemory = field(default_factory=SurgeMemory)
    flooded_s: float | None = None
    caution: float = 1.0
    busy: BusyRate = field(default_factory=BusyRate)

    @property
    def changed_s(self) -> float | None:
        """When capacity was changed last."""
        return self.changes_s[-1] if self.changes_s else None

    def as_of(self, now_s: float) -> CapacityMemory:
        """The same, but after a clock that was set back (:mod:`policies.clock`)."""
        by_s = ahead_s(now_s, self.decided_s, self.surge.read_s, self.changed_s)
        if not by_s:
            return self
        shedding, surge = self.shedding, self.surge
        return replace(
            self,
            changes_s=tuple(at_s - by_s for at_s in self.changes_s),
            enough_since_s=tuple(back(at_s, by_s) for at_s in self.enough_since_s),
            look_s=back(self.look_s, by_s),
            overloaded_s=back(self.overloaded_s, by_s),
            decided_s=back(self.decided_s, by_s),
            beyond_s=back(self.beyond_s, by_s),
            flooded_s=back(self.flooded_s, by_s),
            shedding=replace(
                shedding,
                calm_since_s=back(shedding.calm_since_s, by_s),
                troubled_s=back(shedding.troubled_s, by_s),
            ),
            surge=replace(
                surge,
                read_s=back(surge.read_s, by_s),
                alarmed_s=back(surge.alarmed_s, by_s),
            ),
            busy=replace(self.busy, read_s=back(self.busy.read_s, by_s)),
        )

    def busy_rps(self, entry: CarriedRate) -> float:
        """Requests as long as they are now that ``entry`` began a second when a queue was felt; 0:
        unknown."""
        return self.busy.rps_of(str(entry.settings.plan)) / self.request_size


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Requests that wait for their first step, and those that run; how many a second ended in the
    last ``window_s``."""

    waiting: float
    finished_rps: float
    running: float = 0.0
    window_s: float = 30.0

    @property
    def answer_s(self) -> float:
        """Seconds from a first step to the end (Little's law); inf where none ended."""
        return self.running / self.finished_rps if self.finished_rps else math.inf


@dataclass(frozen=True, kw_only=True)
class CapacityState:
    """Everything a decision depends on.

    ``current`` is the entry in force. ``forecast`` None: no data came; it is ``age_s`` old.
    ``observed_rps`` is the rate of the last window, of the table's mix, with what was turned away,
    and ``observed_luck`` its relative standard deviation under a steady load; ``is_sla_met`` how
    the rest was judged, and ``attainment`` which share of it met the SLA (None: too few requests).
    ``request_size``: requests of that mix that one request amounts to in it (None: unknown).
    ``admitted_rps`` requests, of whatever length, are let in at most (None: whatever comes), and
    ``queue`` is that of those let in (None: unknown). ``costs``: of going to each entry of the
    table, in its order.
    """

    table: CapacityTable
    now_s: float
    current: CarriedRate
    forecast: Forecast | None
    observed_rps: float | None = None
    observed_luck: float = 0.0
    is_sla_met: bool | None = None
    attainment: float | None = None
    request_size: float | None = None
    admitted_rps: float | None = None
    queue: Queue | None = None
    age_s: float = 0.0
    costs: tuple[SwitchCost, ...] = ()
    memory: CapacityMemory = field(default_factory=CapacityMemory)
    limits: CapacityLimits = field(default_factory=CapacityLimits)

    def cost(self, entry: CarriedRate) -> SwitchCost:
        """The cost of going to ``entry``; nothing where nobody said."""
        index = self.table.entries.index(entry)
        return self.costs[index] if index < len(self.costs) else SwitchCost()


@dataclass(frozen=True, kw_only=True)
class CapacityDecision:
    """Which entry should be in force. ``needed_rps``: what it has to carry, headroom included.

    ``admit_rps``: the rate of the table's mix above which requests miss, where the load is beyond
    everything that the engine can be made to carry; None: no need. ``admission_rps`` requests, of
    whatever length, are to be let in at most from now on (None: whatever comes; it may be
    forbidden to do otherwise). ``memory`` goes into the next state.
    """

    action: Action
    reason: CapacityReason
    entry: CarriedRate
    needed_rps: float | None
    admit_rps: float | None
    memory: CapacityMemory
    admission_rps: float | None = None
