"""Settings that change in a simulated run: hot ones at the next step, plans by other ranks.

All goes as in the live engine. Where devices allow, old and new replicas serve side by side
(:mod:`tuner.simulation.passage`). Else all stop: new requests are held at the door, steps in flight
end, the ranks are away for the change's ``cost_s``, then every sequence is dealt to the new
replicas with its tokens so far (which they compute again), and the held requests follow in order.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

from engine.scheduler.table import Sequence
from engine.spec.inventory import Inventory, RankKind
from engine.spec.measurement import RequestTiming
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.transition.planning import Transition, Way, plan_transition
from tuner.simulation.log import AppliedChange, PlanSpell
from tuner.simulation.passage import Passage
from tuner.simulation.register import Register
from tuner.simulation.replicas import Replicas
from tuner.simulation.requests import NEVER_S, Sent
from tuner.simulation.steering import SettingsChange, Steering


@dataclass(kw_only=True)
class _Reshape:
    """All ranks stop for others; ``stopped_s`` is None while steps in flight still run."""

    change: SettingsChange
    at_s: float
    stopped_s: float | None = None
    carried: list[Sequence] = field(default_factory=list)
    held: list[Sent] = field(default_factory=list)


class Changes:
    """Asks the steering of a run, which sees it as a :class:`tuner.simulation.steering.RunView`,
    and puts in force what it answers. Without a steering there is nobody to ask.

    ``ask_s`` is when to :meth:`ask` next, ``due_s`` when to :meth:`go_on` with what is under way;
    ``applied`` is what has changed so far. ``devices``: as many may be in use at once (None: all
    stop for another plan).
    """

    def __init__(
        self,
        steering: Steering | None,
        replicas: Replicas,
        register: Register,
        *,
        devices: int | None = None,
        model: ModelConfig,
    ) -> None:
        self.applied: list[AppliedChange] = []
        self._steering = steering
        self._replicas = replicas
        self._register = register
        self._first_plan = replicas.settings.plan
        self._model = model
        self._inventory = (
            None
            if devices is None
            else Inventory(kind=RankKind.PACED, max_ranks=max(devices, self._first_plan.world_size))
        )
        self._reshape: _Reshape | None = None
        self._passage: Passage | None = None
        self.ask_s = NEVER_S if steering is None else steering.first_s()
        self.due_s = NEVER_S

    # -- what the steering sees ----------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._replicas.settings

    @property
    def held_plan(self) -> ParallelPlan:
        return self._replicas.held_plan

    @property
    def envelope(self) -> Caps:
        return self._replicas.envelope

    @property
    def is_reshaping(self) -> bool:
        return self._reshape is not None or self._passage is not None

    @property
    def is_away(self) -> bool:
        """Whether no rank serves."""
        return self._reshape is not None

    @property
    def is_passing(self) -> bool:
        """Whether old and new ranks serve side by side."""
        return self._passage is not None

    @property
    def num_running(self) -> int:
        # Not the schedulers' count: a stretch in flight has already taken out what ends with its
        # last step.
        return self._register.num_inside - self.num_waiting

    @property
    def num_waiting(self) -> int:
        away = len(self._reshape.carried) + len(self._reshape.held) if self._reshape else 0
        return away + sum(replica.num_waiting for replica in self._replicas.all)

    @property
    def num_refused(self) -> int:
        return self._register.num_refused

    @property
    def kv_usage(self) -> tuple[float, ...]:
        return tuple(replica.kv_usage for replica in self._replicas.all)

    def timings_since(self, since_s: float) -> Listed[RequestTiming]:
        return self._register.timings_since(since_s)

    # -- what the run asks -----------------------------------------------------------------------

    @property
    def is_door_full(self) -> bool:
        """Whether as many requests are held as may wait."""
        limit, reshape = self.settings.caps.max_queue, self._reshape
        return reshape is not None and limit is not None and len(reshape.held) >= limit

    def spells(self, end_s: float) -> tuple[PlanSpell, ...]:
        """The plans of the run, one after the other; its last step ended at ``end_s``."""
        reshapes = [a for a in self.applied if a.is_another_plan]
        plans = [self._first_plan, *(a.change.settings.plan for a in reshapes)]
        end_s = max([end_s, *(a.in_force_s for a in reshapes)])
        edges = [0.0, *(a.stopped_s for a in reshapes), end_s]
        return tuple(
            PlanSpell(plan=plan, from_s=from_s, to_s=to_s)
            for plan, from_s, to_s in zip(plans, edges, edges[1:], strict=False)
        )

    # -- commands --------------------------------------------------------------------------------

    def ask(self, now_s: float) -> bool:
        """Let the steering decide; returns whether something changes.

        Raises:
            PolicyError: a change that a live engine would refuse.
            TunerError: nothing is known of the ranks of a plan that it changes to.
        """
        assert self._steering is not None, "somebody is there to ask"
        turn = self._steering.ask(now_s, self)
        assert turn.next_s > now_s, "a steering lets time pass"
        self.ask_s = turn.next_s
        if turn.change is None:
            return False
        assert self._reshape is None, "no change is begun while ranks are away"
        if not turn.change.moves_ranks:
            self._set_hot(turn.change, now_s)
        elif self._fits(turn.change):
            self._begin(turn.change, now_s)
        else:
            self.applied.append(AppliedChange.refused(turn.change, now_s))
            return False
        return True

    def hold(self, sent: Sent) -> None:
        """Let a request wait at the door while ranks are away."""
        assert self._reshape is not None, "the door is shut in a reshape only"
        self._reshape.held.append(sent)

    def wind_down(self, now_s: float) -> None:
        """Start nothing before a reshape. Once the last step has ended, every sequence is taken
        out and the ranks are away."""
        reshape = self._reshape
        assert reshape is not None, "replicas stop for a reshape only"
        if reshape.stopped_s is not None:
            return
        for replica in self._replicas.all:
            replica.wind_down()
        if not self._replicas.are_in_flight:
            reshape.stopped_s = now_s
            reshape.carried = self._replicas.release()
            self.due_s = now_s + reshape.change.cost_s

    def go_on(self, now_s: float) -> list[Sent]:
        """New ranks are ready, or old ones have left or run out of time. Returns the requests that
        were held, to be let in."""
        if self._passage is None:
            return self._open(now_s)
        done = self._passage.go_on(now_s)
        self.due_s = self._passage.due_s
        if done is not None:
            self.applied.append(done)
            self._passage = None
        return []

    # -- parts -----------------------------------------------------------------------------------

    def _open(self, now_s: float) -> list[Sent]:
        """The new ranks are ready: deal the sequences; returns the held requests, to be let in."""
        reshape, self._reshape = self._reshape, None
        self.due_s = NEVER_S
        assert reshape is not None, "only a reshape opens"
        assert reshape.stopped_s is not None, "the old ranks have stopped"
        self._replicas.reshape(
            reshape.change.settings, reshape.carried, stopped_s=reshape.stopped_s
        )
        self.applied.append(
            AppliedChange(
                at_s=reshape.at_s,
                stopped_s=reshape.stopped_s,
                in_force_s=now_s,
                change=reshape.change,
                num_carried=len(reshape.carried),
                way=Way.STOP_AND_CARRY,
            )
        )
        return reshape.held

    def _begin(self, change: SettingsChange, now_s: float) -> None:
        """Side by side where devices allow, else by stopping all."""
        way = self._transition(change)
        if way is None or way.way is Way.STOP_AND_CARRY:
            self._reshape = _Reshape(change=change, at_s=now_s)
            return
        self._passage = Passage(self._replicas, change, way, at_s=now_s)
        self.go_on(now_s)

    def _transition(self, change: SettingsChange) -> Transition | None:
        if self._inventory is None:
            return None
        return plan_transition(
            self._replicas.held_plan,
            [replica.slot for replica in self._replicas.serving],
            change.settings.plan,
            inventory=self._inventory,
            model=self._model,
        )

    def _set_hot(self, change: SettingsChange, now_s: float) -> None:
        """Obey from the next step on."""
        self._replicas.set_hot(change.settings)
        self.applied.append(
            AppliedChange(at_s=now_s, stopped_s=now_s, in_force_s=now_s, change=change)
        )

    def _fits(self, change: SettingsChange) -> bool:
        """Whether every request in progress may go on under the new plan: a live engine refuses
        the change otherwise, and goes on."""
        return self._register.longest_inside <= self._replicas.setup(change.settings).max_model_len
