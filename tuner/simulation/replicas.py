"""The replicas of a simulated run under the settings in force."""

from __future__ import annotations

from engine.scheduler.table import Sequence
from engine.spec.feasible import check_plan
from engine.spec.held import settings_on
from engine.spec.settings import Caps, Settings
from tuner.simulation.log import RunCounts, Segment, TokenLog
from tuner.simulation.replica import SimulatedReplica
from tuner.simulation.setup import ReplicaSetup, SimulatedEngine


class Replicas:
    """As many replicas as the plan says; a reshape puts others in their place.

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
        self.all = self._make(settings)

    # -- questions ---------------------------------------------------------------------------

    @property
    def next(self) -> SimulatedReplica:
        """The replica whose next event comes first."""
        return self.all[0] if len(self.all) == 1 else min(self.all, key=_event_s)

    @property
    def least_loaded(self) -> SimulatedReplica:
        return self.all[0] if len(self.all) == 1 else min(self.all, key=_load_tokens)

    @property
    def are_in_flight(self) -> bool:
        return any(replica.is_in_flight for replica in self.all)

    @property
    def end_s(self) -> float:
        """When the last step so far ended."""
        return max((segment.end_s[-1] for segment in self.segments), default=0.0)

    def setup(self, settings: Settings) -> ReplicaSetup:
        """What replicas run with under ``settings``. Raises as the class does."""
        plan, caps = settings.plan, settings.caps
        check_plan(plan, self._engine.model)
        return ReplicaSetup(
            engine=self._engine,
            settings=settings,
            ranks=self._engine.ranks_of(plan),
            envelope=self.envelope,
            stops_at_ends=self._is_watched or plan.dp > 1 or caps.max_queue is not None,
        )

    # -- commands ----------------------------------------------------------------------------

    def set_hot(self, settings: Settings) -> None:
        """Obey other settings from the next step on, whose plan needs no other shards."""
        setup = self.setup(settings_on(self.held_plan, settings))
        for replica in self.all:
            replica.set_hot(setup)
        self.settings = settings

    def release(self) -> list[Sequence]:
        """Take every sequence out; nothing may be in flight."""
        return [sequence for replica in self.all for sequence in replica.release()]

    def reshape(self, settings: Settings, carried: list[Sequence]) -> None:
        """Put replicas of other settings in the place of these, and deal ``carried`` to them."""
        self._past_counts += self._counts()
        self.all = self._make(settings)
        self.settings, self.held_plan = settings, settings.plan
        for nth, replica in enumerate(self.all):
            replica.adopt(carried[nth :: len(self.all)])

    def finish_counts(self) -> RunCounts:
        """What all replicas of the run have counted, former ones included."""
        return RunCounts.total(self._past_counts + self._counts())

    # -- parts -------------------------------------------------------------------------------

    def _make(self, settings: Settings) -> list[SimulatedReplica]:
        setup = self.setup(settings)
        return [
            SimulatedReplica(setup, number=number, log=self._log, segments=self.segments)
            for number in range(settings.plan.dp)
        ]

    def _counts(self) -> list[RunCounts]:
        return [replica.finish_counts() for replica in self.all]


def _event_s(replica: SimulatedReplica) -> float:
    return replica.next_event_s


def _load_tokens(replica: SimulatedReplica) -> int:
    return replica.load_tokens
