"""Step times of one plan on described hardware, served by one backend."""

from __future__ import annotations

from engine.config import ModelConfig
from engine.plan import Mode, ParallelPlan
from engine.steps import StepShape
from tuner.backends.backend import Backend
from tuner.hardware import Hardware, Precision, paced_timer


class ServedTimer:
    """A :class:`engine.executors.protocol.StepTimer`: device times of the mode's launches, and
    what the backend's host adds.

    Raises:
        PlanError: the model cannot run under the plan.
        TunerError: more devices than there are, or the device cannot compute in ``precision``.
    """

    def __init__(
        self,
        hardware: Hardware,
        model: ModelConfig,
        plan: ParallelPlan,
        precision: Precision,
        backend: Backend,
    ) -> None:
        launches = {Mode.BASE: backend.launch, Mode.SHIFT: backend.shift_launch}
        if not plan.shift:
            launches[Mode.SHIFT] = backend.launch
        timers = {
            launch: paced_timer(hardware, model, plan, precision, launch=launch)
            for launch in set(launches.values())
        }
        self._timers = {mode: timers[launch] for mode, launch in launches.items()}
        self._host = backend.host

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return self._timers[shape.mode].stage_seconds(shape)

    def host_seconds(self, shape: StepShape) -> float:
        host = self._host
        work_s = host.step_s + host.seq_s * shape.num_seqs
        if host.is_overlapped:
            work_s = max(0.0, work_s - sum(self.stage_seconds(shape)))
        return host.exposed_s + work_s
