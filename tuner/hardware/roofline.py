"""Step times on described hardware: fitted operator curves where the device has them for the
number format, else an estimate from peaks that gives the order of size and the direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import DType, ModelConfig
from engine.plan import Mode, ParallelPlan, check_plan
from engine.steps import StepShape
from tuner.errors import TunerError
from tuner.features import LogitsExchange, StageWork, WorkCounter
from tuner.hardware.collectives import Placement
from tuner.hardware.curve_operators import CurveOperators, Launch
from tuner.hardware.device import DeviceSpec, Hardware
from tuner.hardware.operators import Operators, PeakOperators
from tuner.hardware.precision import Precision
from tuner.hardware.sampling import SamplerSpec, sample_s


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Where the time of one stage goes."""

    gemm_s: float
    attention_s: float
    elementwise_s: float
    head_s: float
    launch_s: float
    communication_s: float
    sampling_s: float = 0.0

    @property
    def total_s(self) -> float:
        return (
            self.gemm_s
            + self.attention_s
            + self.elementwise_s
            + self.head_s
            + self.sampling_s
            + self.launch_s
            + self.communication_s
        )


class RooflineTimer:
    """A :class:`engine.executors.protocol.StepTimer` for ``plan`` on ``device``.

    ``launch`` says how kernels start; it matters on calibrated devices only. ``sampler`` adds the
    time of sampling on the last stage; without one a step ends with gathered logits.
    """

    def __init__(
        self,
        device: DeviceSpec,
        model: ModelConfig,
        plan: ParallelPlan,
        dtype: DType | Precision,
        launch: Launch = Launch.GRAPH,
        sampler: SamplerSpec | None = None,
    ) -> None:
        precision = Precision.of(dtype)
        self._device, self._sampler = device, sampler
        exchange = sampler.exchange if sampler else LogitsExchange.GATHER
        self._counter = WorkCounter(model, plan.replica, precision.dtype, exchange)
        self._placement = Placement(plan.replica, device.devices_per_node)
        self._alike = _alike(self._counter, self._placement)
        self._operators = _operators(device, model, self._counter, precision, launch)
        self._seen: dict[tuple[Mode, int, int], tuple[_FixedSeconds, ...]] = {}

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        key = (shape.mode, shape.num_tokens, shape.num_sampled)
        parts = self._seen.get(key)
        if parts is None:
            parts = self._seen[key] = self._all_fixed(shape)
        attention_s = self._operators.attention_s(shape)
        return tuple(
            part.seconds(layers * attention_s)
            for part, layers in zip(parts, self._counter.layers_of_stage, strict=True)
        )

    def host_seconds(self, shape: StepShape) -> float:
        return self._device.host_per_step_s + self._device.host_per_seq_s * shape.num_seqs

    def breakdown(self, shape: StepShape, stage: int) -> StageSeconds:
        """The parts of one stage's time; ``launch_s`` is what launching adds to the others."""
        work = self._counter.stage(shape, stage)
        operators = self._operators
        parts = self._fixed(shape, stage)
        attention_s = work.layers * operators.attention_s(shape)
        added_s = parts.seconds(attention_s) - attention_s - parts.device_s
        return StageSeconds(
            gemm_s=work.layers * operators.gemms_s(shape.mode, work.rows),
            attention_s=attention_s,
            elementwise_s=operators.elementwise_s(work, is_first=stage == 0),
            head_s=operators.head_s(work.sampled) if work.head else 0.0,
            sampling_s=self._sampling_s(work),
            launch_s=added_s,
            communication_s=self._communication_s(work, stage),
        )

    def _communication_s(self, work: StageWork, stage: int) -> float:
        is_far = self._placement.is_far(stage)
        return sum(self._operators.collective_s(c, is_far=is_far) for c in work.collectives)

    def _sampling_s(self, work: StageWork) -> float:
        if self._sampler is None or not work.sampled:
            return 0.0
        rows = self._sampler.rows(work.sampled, self._counter.plan.stage_size)
        vocab_size = self._counter.model.vocab_size
        return sample_s(self._device, rows, vocab_size, self._sampler.kind)

    def _fixed(self, shape: StepShape, stage: int) -> _FixedSeconds:
        """What depends on tokens and mode only."""
        work = self._counter.stage(shape, stage)
        operators = self._operators
        return _FixedSeconds(
            device_s=work.layers * operators.gemms_s(shape.mode, work.rows)
            + operators.elementwise_s(work, is_first=stage == 0)
            + (operators.head_s(work.sampled) if work.head else 0.0)
            + self._sampling_s(work)
            + self._communication_s(work, stage),
            launch_s=operators.launch_s(work),
            floor_s=operators.floor_s(work),
        )

    def _all_fixed(self, shape: StepShape) -> tuple[_FixedSeconds, ...]:
        """Of all stages; those that do equal work are asked once."""
        parts = {stage: self._fixed(shape, stage) for stage in dict.fromkeys(self._alike)}
        return tuple(parts[stage] for stage in self._alike)


@dataclass(frozen=True, kw_only=True)
class _FixedSeconds:
    """A stage without its attention. ``launch_s`` is always added; ``floor_s`` is how long the
    launches of the whole stage take beside the device."""

    device_s: float
    launch_s: float
    floor_s: float

    def seconds(self, attention_s: float) -> float:
        """The stage with ``attention_s`` of attention."""
        return max(self.floor_s, self.device_s + attention_s + self.launch_s)


def _alike(counter: WorkCounter, placement: Placement) -> tuple[int, ...]:
    """For each stage the first that does equal work and is reached over an equal link."""
    kinds = [(same, placement.is_far(stage)) for stage, same in enumerate(counter.alike)]
    return tuple(kinds.index(kind) for kind in kinds)


def _operators(
    device: DeviceSpec,
    model: ModelConfig,
    counter: WorkCounter,
    precision: Precision,
    launch: Launch,
) -> Operators:
    curves = device.curves_for(precision)
    if curves is None:
        return PeakOperators(device, model, counter, precision)
    return CurveOperators(device, curves, model, counter, precision, launch)


def paced_timer(
    hardware: Hardware,
    model: ModelConfig,
    plan: ParallelPlan,
    dtype: DType | Precision,
    *,
    launch: Launch = Launch.GRAPH,
    sampler: SamplerSpec | None = None,
) -> RooflineTimer:
    """Step times of one replica of ``plan`` on ``hardware``; with ``sampler`` those of sampling
    too.

    Raises:
        PlanError: the model cannot run under the plan.
        TunerError: more devices than there are, or the device cannot compute in ``dtype``.
    """
    check_plan(plan, model)
    if plan.world_size > hardware.count:
        raise TunerError(
            f"plan {plan} needs {plan.world_size} devices, {hardware} has {hardware.count}"
        )
    device, precision = hardware.device, Precision.of(dtype)
    if precision.peak not in device.dense_flops_per_s:
        known = ", ".join(device.dense_flops_per_s)
        raise TunerError(f"{device.name} has no peak for {precision.peak}; known: {known}")
    return RooflineTimer(device, model, plan, precision, launch, sampler)
