"""Step times of one plan on described hardware, served by one backend."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

from engine.executors.protocol import StepTimer
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.backends.backend import Backend, HostTimes, KernelTimes
from tuner.hardware import Hardware, Precision, paced_timer
from tuner.hardware.roofline import KernelFactors, ModeTables


@dataclass(frozen=True, kw_only=True)
class ServedSeconds:
    """Where the time of one step goes, all stages added up; parts named as in arXiv 2606.01927.

    ``launch_s`` is what launching adds to the kernels. The four parts of the host are whole;
    ``exposed_s`` is how much of them no rank's work covers.
    """

    gemm_s: float
    attention_s: float
    elementwise_s: float
    head_s: float
    communication_s: float
    launch_s: float
    schedule_s: float
    input_s: float
    sample_s: float
    output_s: float
    exposed_s: float

    @property
    def forward_s(self) -> float:
        """The ranks' part of the step."""
        return (
            self.gemm_s
            + self.attention_s
            + self.elementwise_s
            + self.head_s
            + self.communication_s
            + self.launch_s
        )

    @property
    def host_s(self) -> float:
        """The host's work, hidden or not."""
        return self.schedule_s + self.input_s + self.sample_s + self.output_s

    @property
    def step_s(self) -> float:
        """How long the step takes."""
        return self.forward_s + self.exposed_s


class PartedTimer(StepTimer, Protocol):
    """A step timer that can tell where a step's time goes."""

    def breakdown(self, shape: StepShape) -> ServedSeconds: ...


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
        launches = {BASE: backend.launch, SHIFT: backend.shift_launch}
        if not plan.shift:
            launches[SHIFT] = backend.launch
        timers = {
            launch: paced_timer(
                hardware,
                model,
                plan,
                precision,
                launch=launch,
                factors=_factors(backend.kernels, precision),
                kv=backend.kv_cache_dtype,
            )
            for launch in set(launches.values())
        }
        # Rungs between base and shift are launched like base, because they exchange heads, too.
        modes = dict.fromkeys([*launches, *plan.modes])
        self._timers = {mode: timers[launches.get(mode, backend.launch)] for mode in modes}
        self._host = backend.host
        self._num_stages = plan.pp
        self._layers = math.ceil(model.num_layers / plan.pp)
        self._last: tuple[StepShape, tuple[float, ...]] | None = None

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        # A simulator asks for the host's and the ranks' seconds of the same step in turn.
        if self._last is not None and self._last[0] is shape:
            return self._last[1]
        seconds = self._timers[shape.mode].stage_seconds(shape)
        self._last = shape, seconds
        return seconds

    def host_seconds(self, shape: StepShape) -> float:
        """Seconds of the host's work that the ranks wait for."""
        host = self._host
        work_s = self._work_s(shape)
        if host.is_overlapped:
            # A full pipeline starts a step whenever its slowest stage is free, and one host
            # prepares every step. Host work longer than that stage sets the pace; shorter work is
            # hidden.
            slowest_s = max(self.stage_seconds(shape))
            hidden_s = slowest_s if self._num_stages == 1 else 0.0
            work_s = work_s - hidden_s if work_s > slowest_s else 0.0
            work_s += host.exposed_seq_s * shape.num_seqs
        return host.exposed_s + work_s

    @property
    def host(self) -> HostTimes:
        """The host's work on a step, with what several stages add to it."""
        host = self._host
        if self._num_stages == 1:
            return host
        return replace(
            host,
            step_s=host.step_s + host.pipeline_step_s,
            seq_s=host.seq_s + host.pipeline_seq_s,
        )

    @property
    def prompt_step_s(self) -> float:
        """What prompts add to the host's work on a step, however many they are."""
        return self._host.prompt_layer_s * self._layers

    def tables(self, mode: Mode, *, tokens: int, sampled: int) -> ModeTables | None:
        """See :meth:`tuner.hardware.roofline.RooflineTimer.tables`."""
        return self._timers[mode].tables(mode, tokens=tokens, sampled=sampled)

    def with_host(self, host: HostTimes) -> ServedTimer:
        """The same ranks under another host."""
        other = copy(self)
        other._host = host
        return other

    def breakdown(self, shape: StepShape) -> ServedSeconds:
        """Where the time of one step goes."""
        timer = self._timers[shape.mode]
        stages = [timer.breakdown(shape, stage) for stage in range(self._num_stages)]
        shares, work_s = self._host.shares, self._work_s(shape) + self._host.exposed_s
        return ServedSeconds(
            gemm_s=sum(stage.gemm_s for stage in stages),
            attention_s=sum(stage.attention_s for stage in stages),
            elementwise_s=sum(stage.elementwise_s for stage in stages),
            head_s=sum(stage.head_s for stage in stages),
            communication_s=sum(stage.communication_s for stage in stages),
            launch_s=sum(stage.launch_s for stage in stages),
            schedule_s=shares.schedule * work_s,
            input_s=shares.input * work_s,
            sample_s=shares.sample * work_s,
            output_s=shares.output * work_s,
            exposed_s=self.host_seconds(shape),
        )

    def _work_s(self, shape: StepShape) -> float:
        num_prompts = shape.num_seqs - shape.num_decode_tokens
        return self._host.work_s(
            shape.num_seqs,
            num_prompts,
            shape.num_prefill_tokens,
            layers=self._layers,
            is_pipeline=self._num_stages > 1,
        )


def _factors(kernels: KernelTimes, precision: Precision) -> KernelFactors:
    """A backend's kernels for products in ``precision``; the head is in two bytes."""
    of_layers = {Precision.FP8: kernels.fp8_gemm, Precision.FP8_BLOCK: kernels.fp8_block_gemm}
    return KernelFactors(
        gemm=of_layers.get(precision, kernels.gemm),
        head=kernels.gemm,
        attention=kernels.attention,
        communication=kernels.communication,
        block_kernel=kernels.block_kernel,
        rounds_apart=kernels.rounds_apart,
    )
