"""Settings that change in a simulated run: hot ones at the next step, plans by a reshape.

A reshape goes as in the live engine: new requests are held at the door, steps in flight end, the
ranks are away for the change's ``cost_s``, then every sequence is dealt to the new replicas with
its tokens so far (which they compute again), and the held requests follow in order.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

from engine.scheduler.table import Sequence
from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.simulation.log import AppliedChange, PlanSpell
from tuner.simulation.register import Register
from tuner.simulation.replicas import Replicas
from tuner.simulation.requests import NEVER_S, Sent
from tuner.simulation.steering import SettingsChange, Steering


@dataclass(kw_only=True)
class _Reshape:
    """A reshape under way; ``stopped_s`` is None while steps in flight still run."""

    change: SettingsChange
    at_s: float
    stopped_s: float | None = None
    carried: list[Sequence] = field(default_factory=list)
    held: list[Sent] = field(default_factory=list)


class Changes:
    """Asks the steering of a run, which sees it as a :class:`tuner.simulation.steering.RunView`,
    and puts in force what it answers. Without a steering there is nobody to ask.

    ``ask_s`` is when to :meth:`ask` next, ``opens_s`` when to :meth:`open` the replicas of another
    plan; ``applied`` is what has changed so far.
    """

    def __init__(self, steering: Steering | None, replicas: Replicas, register: Register) -> None:
        self.applied: list[AppliedChange] = []
        self._steering = steering
        self._replicas = replicas
        self._register = register
        self._first_plan = replicas.settings.plan
        self._reshape: _Reshape | None = None
        self.ask_s = NEVER_S if steering is None else steering.first_s()
        self.opens_s = NEVER_S

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
        return self._reshape is not None

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
        reshapes = [a for a in self.applied if a.change.moves_ranks and not a.is_refused]
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
            self._reshape = _Reshape(change=turn.change, at_s=now_s)
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
            self.opens_s = now_s + reshape.change.cost_s

    def open(self, now_s: float) -> list[Sent]:
        """The new ranks are ready: deal the sequences; returns the held requests, to be let in."""
        reshape, self._reshape = self._reshape, None
        self.opens_s = NEVER_S
        assert reshape is not None, "only a reshape opens"
        assert reshape.stopped_s is not None, "the old ranks have stopped"
        self._replicas.reshape(reshape.change.settings, reshape.carried)
        self.applied.append(
            AppliedChange(
                at_s=reshape.at_s,
                stopped_s=reshape.stopped_s,
                in_force_s=now_s,
                change=reshape.change,
                num_carried=len(reshape.carried),
            )
        )
        return reshape.held

    # -- parts -----------------------------------------------------------------------------------

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
