"""A served model on described hardware: everything a simulation of it needs, in one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from engine.executors.protocol import StepTimer
from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.backends import Backend, PartedTimer, ServedTimer
from tuner.hardware import Hardware, MemoryEstimate, Precision, estimate_memory
from tuner.hardware.memory import weight_bytes_per_rank
from tuner.hardware.roofline import check_devices
from tuner.simulation.simulate import (
    OnProgress,
    Ranks,
    SimulatedEngine,
    SimulationResult,
    no_progress,
    simulate,
)
from tuner.simulation.steering import Steering
from tuner.spec.errors import TunerError
from tuner.step_model.timer import FastestTimer, ScaledTimer, StepScale
from tuner.workload.beginnings import own_tokens
from tuner.workload.workload import IntArray, Workload


@dataclass(frozen=True, kw_only=True)
class Node:
    """``model`` in ``precision`` on ``hardware``, served by ``backend``. Makes a timer per
    replica once."""

    hardware: Hardware
    model: ModelConfig
    precision: Precision
    backend: Backend
    block_size: int = 16
    max_model_len: int | None = None
    _timers: dict[ParallelPlan, ServedTimer] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __getstate__(self) -> dict[str, Any]:
        # Timers cannot be sent to other processes, so each process makes its own.
        return {**self.__dict__, "_timers": {}}

    @property
    def has_rungs(self) -> bool:
        """Whether its backend can use rungs between base and shift. They are views of one copy of
        the weights, so it cannot if each of the two modes has a copy of its own.
        """
        return not self.backend.has_second_weights

    @property
    def context_tokens(self) -> int:
        """The longest sequence."""
        return self.model.context_tokens(self.max_model_len)

    @property
    def interval(self) -> float:
        """The 90 % half width of log(true / simulated) of step times: the wider one of the device's
        (for a step) and the backend's (for served runs).
        """
        return max(self.hardware.device.interval_for(self.precision), self.backend.interval)

    @property
    def place(self) -> str:
        """What a title calls where it runs."""
        return str(self.hardware)

    @property
    def has_device(self) -> bool:
        """Whether its devices are described: their peaks, memory and watts."""
        return True

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a reader has to know of its step times before believing them."""
        device, found = self.hardware.device, []
        if not device.is_calibrated_for(self.precision):
            like = device.estimated_from(self.precision)
            origin = "from data-sheet peaks" if like is None else f"estimated from {like}"
            found.append(
                f"{device.title} is {device.calibration}, so {self.precision} step times are "
                f"{origin}; a step may be off by {percent(device.interval_for(self.precision))}"
            )
        if not self.backend.is_measured:
            found.append(self.unmeasured)
        return tuple(found)

    @property
    def unmeasured(self) -> str:
        """A note that the backend's figures come from no served run; the document has their
        source."""
        return (
            f"{self.backend.title} was never measured on a GPU: a step may be off by "
            f"{percent(self.interval)}"
        )

    def timer(self, plan: ParallelPlan) -> PartedTimer:
        """Step times of one replica of ``plan``.

        Raises:
            PlanError: the model cannot run under the plan.
            TunerError: more devices than there are, or no peak for the precision.
        """
        check_devices(plan, self.hardware)
        replica = plan.replica  # however many there are, all are alike
        if replica not in self._timers:
            self._timers[replica] = ServedTimer(
                self.hardware, self.model, replica, self.precision, self.backend
            )
        return self._timers[replica]

    def memory(
        self, plan: ParallelPlan, *, caps: Caps | None = None, needed_kv_tokens: int = 1
    ) -> MemoryEstimate:
        """Weights (of both modes where the backend holds them twice), activations of steps within
        ``caps`` (None: the backend's own) and KV of a rank."""
        estimate = estimate_memory(
            self.hardware.device,
            self.model,
            plan,
            self.precision,
            caps=caps or self.backend.default_caps,
            samples_in_parallel=self.backend.samples_in_parallel,
            needed_kv_tokens=needed_kv_tokens,
            kv=self.backend.kv_cache_dtype,
        )
        if not (plan.shift and self.backend.has_second_weights):
            return estimate
        shift_plan = replace(plan, sp=1, tp=plan.stage_size, shift=False)
        second = weight_bytes_per_rank(self.model, shift_plan, self.precision)
        return replace(estimate, weight_bytes=estimate.weight_bytes + second)

    def num_kv_blocks(self, plan: ParallelPlan, caps: Caps | None = None) -> int:
        """KV blocks each rank has room for beside steps within ``caps`` (None: the backend's own).

        Raises:
            TunerError: not one block fits, with the numbers.
        """
        estimate = self.memory(plan, caps=caps, needed_kv_tokens=self.block_size)
        if estimate.reason is not None:
            raise TunerError(f"plan {plan} on {self.hardware.device.name}: {estimate.reason}")
        return estimate.kv_tokens // self.block_size

    def finds_beginnings(self, workload: Workload) -> bool:
        """Whether beginnings that prompts share are found in a prefix cache."""
        return self.backend.prefix_cache and workload.shares_beginnings

    def computed_tokens(self, workload: Workload) -> IntArray:
        """What is computed of each prompt at least, i64[requests]."""
        is_found = self.finds_beginnings(workload)
        return own_tokens(workload) if is_found else workload.input_tokens

    def simulate(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int = 0,
        keeps_prefixes: bool | None = None,
        step_scale: float | StepScale = 1.0,
        on_progress: OnProgress = no_progress,
        steering: Steering | None = None,
        envelope: Caps | None = None,
        devices: int | None = None,
        is_oracle: bool = False,
    ) -> SimulationResult:
        """One run of ``workload`` on ``settings.plan``; fewer ranks than devices leave the rest
        of the devices idle. ``keeps_prefixes`` None: as the backend does. ``step_scale``
        multiplies all step times: the ends of an interval.
        ``is_oracle``: every step takes as long as in the fastest of the settings' modes.
        ``steering`` may change the settings on the way, within ``envelope``; KV is what the widest
        steps of the two leave room for. ``devices``: as many may be in use at once while
        plans change (None: all ranks stop for another plan).

        Raises:
            PlanError, PolicyError, TunerError: as :meth:`timer` and :meth:`num_kv_blocks`.
        """
        widest = envelope or settings.caps
        keeps = self.finds_beginnings(workload) if keeps_prefixes is None else keeps_prefixes
        engine = SimulatedEngine(
            model=self.model,
            ranks_of=lambda plan: Ranks(
                timer=self._scaled(plan, step_scale, settings.modes if is_oracle else ()),
                num_kv_blocks=self.num_kv_blocks(plan, widest),
            ),
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            front_end=self.backend.front_end,
            prompt_wait=self.backend.prompt_wait,
            look_ahead=self.backend.look_ahead,
            # Prompts that share nothing find nothing in the cache, so their contents need not be
            # made.
            keeps_prefixes=keeps and workload.shares_beginnings,
            step_order=self.backend.step_order,
            envelope=envelope,
            devices=devices,
        )
        return simulate(
            engine, settings, workload, seed=seed, steering=steering, on_progress=on_progress
        )

    def _scaled(
        self, plan: ParallelPlan, factor: float | StepScale, fastest_of: tuple[Mode, ...] = ()
    ) -> StepTimer:
        timer: StepTimer = self.timer(plan)
        if fastest_of:
            timer = FastestTimer(timer, fastest_of)
        is_one = factor.is_one if isinstance(factor, StepScale) else factor == 1.0
        return timer if is_one else ScaledTimer(timer, factor)


def percent(log_ratio: float) -> str:
    """A log ratio as a reader says it."""
    return f"{100 * math.expm1(log_ratio):.0f} %"
