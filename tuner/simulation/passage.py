"""From one plan to another while ranks serve: replicas join, others leave when they are done.

The live engine's own steps (:mod:`engine.transition`), in virtual time.
"""

from __future__ import annotations

from engine.transition.costs import DEFAULT_DRAIN_S
from engine.transition.planning import Step, Transition
from tuner.simulation.log import AppliedChange
from tuner.simulation.replicas import Replicas
from tuner.simulation.requests import NEVER_S
from tuner.simulation.steering import SettingsChange


class Passage:
    """A change to another plan, step by step.

    ``due_s`` is when to :meth:`go_on`; besides, whenever a request has ended. Ranks that start
    take the change's ``cost_s``; replicas that leave have :data:`DEFAULT_DRAIN_S` to finish
    their requests, which then go on elsewhere.
    """

    def __init__(
        self,
        replicas: Replicas,
        change: SettingsChange,
        way: Transition,
        *,
        at_s: float,
    ) -> None:
        self.due_s = at_s
        self._replicas = replicas
        self._change = change
        self._way = way
        self._at_s = at_s
        self._steps = list(way.steps)
        self._num_carried = 0
        self._joined_s = at_s
        self._ready_s: float | None = None
        self._hand_over_s = NEVER_S
        self._retire(self._steps[0], at_s)

    def go_on(self, now_s: float) -> AppliedChange | None:
        """Take the steps that can be taken by now; returns the change once it is in force."""
        while self._steps:
            if not self._has_finished(self._steps[0], now_s):
                return None
            self._steps.pop(0)
            if self._steps:
                self._retire(self._steps[0], now_s)
        self.due_s = NEVER_S
        self._replicas.take_as_new(self._change.settings)
        self._replicas.set_hot(self._change.settings)
        return AppliedChange(
            at_s=self._at_s,
            stopped_s=self._joined_s,
            in_force_s=self._joined_s,
            change=self._change,
            num_carried=self._num_carried,
            way=self._way.way,
        )

    def _retire(self, step: Step, now_s: float) -> None:
        self._replicas.retire(step.retire)
        self._hand_over_s = now_s + DEFAULT_DRAIN_S
        self._ready_s = None

    def _has_finished(self, step: Step, now_s: float) -> bool:
        """Whether the leaving replicas are gone and the starting ones serve; sets ``due_s``."""
        self._replicas.drop_empty(now_s)
        if now_s >= self._hand_over_s:
            self._num_carried += self._replicas.hand_over(now_s)
        if self._replicas.leaving:
            self.due_s = self._hand_over_s if now_s < self._hand_over_s else NEVER_S
            return False
        if not step.start:
            return True
        if self._ready_s is None:
            self._replicas.occupy(step.start, now_s)
            self._ready_s = now_s + self._change.cost_s
        if now_s < self._ready_s:
            self.due_s = self._ready_s
            return False
        self._replicas.join(self._change.settings, step.start)
        self._joined_s = now_s
        return True
