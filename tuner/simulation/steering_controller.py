"""The live controller at the wheel of a simulated run: the same windows, the same decisions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.controller import (
    Action,
    ControlLimits,
    ControlMemory,
    ControlState,
    Decision,
    decide,
)
from policies.feasibility import is_feasible_when_idle
from policies.observation import Observation
from policies.schedule import Schedule
from policies.sla import Sla
from tuner.simulation.seen_windows import SeenWindows
from tuner.simulation.steering import RunView, SettingsChange, Turn, free_reshapes
from tuner.spec.errors import TunerError

# The control plane's defaults.
INTERVAL_S = 5.0
WINDOW_S = 15.0


@dataclass(frozen=True, kw_only=True)
class SteeringDecision:
    """One decision of a run: when, what, and what was seen then."""

    now_s: float
    decision: Decision
    observation: Observation | None


class ControllerSteering:
    """Asks ``policies.controller.decide`` every ``interval_s``, as the control plane does.

    It is shown the last ``window_s`` seconds of the run's own timings, judged by ``sla``.
    ``decisions`` has every answer of the last run.

    Raises:
        TunerError: an interval of 0 or less, or a window shorter than it.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        sla: Sla | None,
        limits: ControlLimits | None = None,
        interval_s: float = INTERVAL_S,
        window_s: float = WINDOW_S,
    ) -> None:
        if not 0 < interval_s <= window_s:
            raise TunerError(
                f"interval_s={interval_s}, window_s={window_s}: an interval is above 0 and no "
                "longer than the window"
            )
        self._schedule = schedule
        self._sla = sla
        self._is_feasible_when_idle = is_feasible_when_idle(sla, schedule.alone)
        self._limits = limits or ControlLimits(max_data_age_s=window_s, settle_s=window_s)
        self._interval_s = interval_s
        self._num_kept = max(1, round(window_s / interval_s))
        self.first_s()

    @property
    def moves(self) -> list[SteeringDecision]:
        """The decisions that changed the settings in force."""
        return [d for d in self.decisions if d.decision.action is Action.MOVE]

    def first_s(self) -> float:
        """Forget the run before; the first window is full ``interval_s`` in."""
        self.decisions: list[SteeringDecision] = []
        self._windows = SeenWindows(self._num_kept)
        self._memory = ControlMemory()
        return self._interval_s

    def ask(self, now_s: float, view: RunView) -> Turn:
        self._windows.look(now_s, view)
        next_s = now_s + self._interval_s
        if view.is_reshaping or view.settings.plan != self._schedule.plan:
            return Turn(change=None, next_s=next_s)  # as the live loop: not its business now
        seen = self._windows.observe(self._sla)
        in_force = view.settings
        if self._memory.commanded is None:  # what it is started with is what was commanded
            self._memory = replace(self._memory, commanded=in_force, changed_s=0.0)
        decision = decide(
            ControlState(
                schedule=self._schedule,
                now_s=now_s,
                load=None if seen is None else seen.load,
                in_force=in_force,
                is_feasible_when_idle=self._is_feasible_when_idle,
                memory=self._memory,
                limits=self._limits,
            )
        )
        self._memory = decision.memory
        self.decisions.append(SteeringDecision(now_s=now_s, decision=decision, observation=seen))
        return Turn(change=_change(decision, view), next_s=next_s)


def _change(decision: Decision, view: RunView) -> SettingsChange | None:
    if decision.action is not Action.MOVE or decision.settings is None:
        return None
    wanted = view.settings.with_hot(decision.settings)
    return SettingsChange.between(
        view.settings, wanted, envelope=view.envelope, reshape_s=free_reshapes
    )
