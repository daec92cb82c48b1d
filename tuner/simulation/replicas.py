"""The replicas of a simulated run under the settings in force."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from engine.scheduler.table import Sequence
from engine.spec.errors import QueueFullError
from engine.spec.held import settings_on
from engine.spec.request import Request
from engine.spec.settings import Caps, Settings
from engine.transition.planning import Slot, first_slots
from tuner.simulation.log import DeviceSpell, RunCounts, Segment, TokenLog
from tuner.simulation.replica import SimulatedReplica
from tuner.simulation.setup import ReplicaSetup, SimulatedEngine, replica_setup


class Replicas:
    """As many replicas as the plan says; a reshape puts others in their place, or some join and
    some leave. ``all`` has those that leave too, as long as they have requests; new requests go to
    ``serving``.

    ``envelope`` is the most that caps may be raised to. ``is_watched``: somebody outside looks
    whenever a request ends, whatever the settings. ``log`` gets the tokens.

    Raises:
        PlanError: the model cannot run under the plan.
        PolicyError: a mode or threshold that the plan does not have.
        TunerError: nothing is known of the plan's ranks.
    """

    def __init__(
        self,
        engine: SimulatedEngine,
        settings: Settings,
        *,
        envelope: Caps,
        is_watched: bool,
        log: TokenLog,
    ) -> None:
        self.settings = settings
        self.held_plan = settings.plan
        self.envelope = envelope
        self.segments: list[Segment] = []
        self._engine = engine
        self._is_watched = is_watched
        self._log = log
        self._past_counts: list[RunCounts] = []
        self._past_spells: list[DeviceSpell] = []
        self._occupied_s: dict[Slot, float] = {}
        self.all: list[SimulatedReplica] = []
        self.serving: list[SimulatedReplica] = []
        self._fill(settings, first_slots(settings.plan), 0.0)

    # -- questions ---------------------------------------------------------------------------

    @property
    def next(self) -> SimulatedReplica:
        """The replica whose next event comes first."""
        return self.all[0] if len(self.all) == 1 else min(self.all, key=_event_s)

    @property
    def least_loaded(self) -> SimulatedReplica:
        return self.serving[0] if len(self.serving) == 1 else min(self.serving, key=_load_tokens)

    @property
    def leaving(self) -> list[SimulatedReplica]:
        """Those that take no more requests and still have some."""
        if len(self.all) == len(self.serving):
            return []
        return [replica for replica in self.all if replica not in self.serving]

    @property
    def are_in_flight(self) -> bool:
        return any(replica.is_in_flight for replica in self.all)

    @property
    def end_s(self) -> float:
        """When the last step so far ended."""
        return max((segment.end_s[-1] for segment in self.segments), default=0.0)

    def setup(self, settings: Settings) -> ReplicaSetup:
        """What replicas run with under ``settings``. Raises as the class does."""
        return replica_setup(self._engine, settings, self.envelope, is_watched=self._is_watched)

    # -- commands ----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Give a request to the replica with the least to do that has room for it, as the live door
        does.

        Raises:
            RequestError, QueueFullError: a live engine would refuse it.
        """
        try:
            self.least_loaded.add(request)
        except QueueFullError:
            for replica in sorted(self.serving, key=_load_tokens)[1:]:
                with suppress(QueueFullError):
                    replica.add(request)
                    return
            raise

    def set_hot(self, settings: Settings) -> None:
        """Obey other settings from the next step on, whose plan needs no other shards."""
        setup = self.setup(settings_on(self.held_plan, settings))
        for replica in self.serving:
            replica.set_hot(setup)
        self.settings = settings

    def release(self) -> list[Sequence]:
        """Take every sequence out; nothing may be in flight."""
        return [sequence for replica in self.all for sequence in replica.release()]

    def reshape(self, settings: Settings, carried: list[Sequence], *, stopped_s: float) -> None:
        """Put replicas of other settings in the place of these, which stopped at ``stopped_s``,
        and deal ``carried`` to them."""
        for replica in list(self.all):
            self._drop(replica, stopped_s)
        self._fill(settings, first_slots(settings.plan), stopped_s)
        self.take_as_new(settings)
        for nth, replica in enumerate(self.all):
            replica.adopt(carried[nth :: len(self.all)])

    def occupy(self, slots: Iterable[Slot], now_s: float) -> None:
        """Ranks start on these devices."""
        self._occupied_s |= dict.fromkeys(slots, now_s)

    def join(self, settings: Settings, slots: Iterable[Slot]) -> None:
        """New replicas serve in slots that they occupy already."""
        setup = self.setup(settings)
        # Numbers of those that have left are not given again: segments name replicas by them.
        first = 1 + max((segment.replica for segment in self.segments), default=-1)
        first = max(first, len(self.all))
        fresh = [self._make(setup, first + nth, slot) for nth, slot in enumerate(slots)]
        self.all += fresh
        self.serving += fresh

    def retire(self, slots: Iterable[Slot]) -> None:
        """The replicas in these slots take no more requests."""
        gone = set(slots)
        self.serving = [replica for replica in self.serving if replica.slot not in gone]

    def drop_empty(self, now_s: float) -> None:
        """Those that leave and have no request left are gone."""
        for replica in self.leaving:
            if replica.is_empty:
                self._drop(replica, now_s)

    def hand_over(self, now_s: float) -> int:
        """Those that leave have no more time: stop them, and deal what they have to those that
        serve; the number of requests. Steps in flight end first: ask again when they have."""
        carried = 0
        for replica in self.leaving:
            replica.wind_down()
            if not replica.is_in_flight:
                sequences = replica.release()
                carried += len(sequences)
                for sequence in sequences:
                    self.least_loaded.adopt([sequence])
                self._drop(replica, now_s)
        return carried

    def take_as_new(self, settings: Settings) -> None:
        """These settings are in force, and the ranks that serve hold the shards of their plan."""
        self.settings, self.held_plan = settings, settings.plan

    def device_spells(self, end_s: float) -> tuple[DeviceSpell, ...]:
        """Which replica had how many devices, from when to when; the last ones until ``end_s`` (or
        their start, where no step came after it)."""
        now = [
            DeviceSpell(num_devices=slot.size, from_s=from_s, to_s=max(from_s, end_s))
            for slot, from_s in self._occupied_s.items()
        ]
        return (*self._past_spells, *now)

    def finish_counts(self) -> RunCounts:
        """What all replicas of the run have counted, former ones included."""
        return RunCounts.total(self._past_counts + self._counts())

    # -- parts -------------------------------------------------------------------------------

    def _fill(self, settings: Settings, slots: tuple[Slot, ...], now_s: float) -> None:
        """All replicas of ``settings`` where there are none."""
        setup = self.setup(settings)
        self.all = [self._make(setup, number, slot) for number, slot in enumerate(slots)]
        self.serving = list(self.all)
        self.occupy(slots, now_s)

    def _make(self, setup: ReplicaSetup, number: int, slot: Slot) -> SimulatedReplica:
        return SimulatedReplica(
            setup, number=number, slot=slot, log=self._log, segments=self.segments
        )

    def _drop(self, replica: SimulatedReplica, now_s: float) -> None:
        self._past_counts.append(replica.finish_counts())
        self.all.remove(replica)
        slot = replica.slot
        self._past_spells.append(
            DeviceSpell(num_devices=slot.size, from_s=self._occupied_s.pop(slot), to_s=now_s)
        )

    def _counts(self) -> list[RunCounts]:
        return [replica.finish_counts() for replica in self.all]


def _event_s(replica: SimulatedReplica) -> float:
    return replica.next_event_s


def _load_tokens(replica: SimulatedReplica) -> int:
    return replica.load_tokens
