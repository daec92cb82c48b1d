"""Step times on described hardware: fitted operator curves where the device has them for the
number format, else an estimate from peaks that gives the order of size and the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from engine.spec.feasible import check_plan
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.hardware.block_scaled import BlockKernel
from tuner.hardware.collectives import Placement
from tuner.hardware.curve_operators import AttentionTables, CurveOperators, Launch
from tuner.hardware.device import DeviceSpec, Hardware
from tuner.hardware.fixed import DenseFixed, FixedTable
from tuner.hardware.operators import Operators, PeakOperators
from tuner.hardware.precision import KvFormat, Precision
from tuner.hardware.sampling import SamplerSpec, sample_s
from tuner.spec.errors import TunerError
from tuner.work.counts import LogitsExchange, StageWork, WorkCounter


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


@dataclass(frozen=True, kw_only=True)
class KernelFactors:
    """Factors on the measured times of each kind of kernel: how long a system's own kernels take,
    over those that were measured. ``block_kernel`` multiplies block-scaled weights;
    ``rounds_apart``: a separate pass rounds activations to fp8, as in the curves."""

    gemm: float = 1.0
    head: float = 1.0
    attention: float = 1.0
    communication: float = 1.0
    block_kernel: BlockKernel = BlockKernel.CUTLASS
    rounds_apart: bool = True


MEASURED_KERNELS = KernelFactors()


@dataclass(frozen=True, kw_only=True)
class ModeTables:
    """A timer's look-ups for the steps of one mode: a stage takes ``fixed`` seconds plus its
    ``factors`` times a layer's ``attention``, and at least its ``floors``. ``fill`` writes the
    seconds of tokens and sampled rows into ``fixed``."""

    fixed: DenseFixed
    fill: Callable[[int, int], None]
    floors: tuple[float, ...]
    factors: tuple[float, ...]
    attention: AttentionTables


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
        factors: KernelFactors = MEASURED_KERNELS,
        kv: KvFormat = KvFormat.AUTO,
    ) -> None:
        precision = Precision.of(dtype)
        self._device, self._sampler = device, sampler
        exchange = sampler.exchange if sampler else LogitsExchange.GATHER
        self._counter = WorkCounter(model, plan.replica, precision.dtype, exchange)
        self._placement = Placement(plan.replica, device.devices_per_node)
        self._alike = _alike(self._counter, self._placement)
        self._operators = _operators(device, model, self._counter, precision, launch, kv, factors)
        self._factors = factors
        self._fixed = FixedTable(self._without_attention, slices=lambda mode: plan.rung(mode).sp)
        self._floors: dict[Mode, list[float]] = {}
        layers = self._counter.layers_of_stage
        self._attention_factors = [factors.attention * count for count in layers]

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        fixed = self._fixed.at(shape.mode, shape.num_tokens, shape.num_sampled)
        attention_s = self._operators.attention_s(shape)
        floors, factors = self._floors_of(shape.mode), self._attention_factors
        if len(fixed) == 1:
            return (max(floors[0], fixed[0] + factors[0] * attention_s),)
        return tuple(
            max(floor_s, fixed_s + factor * attention_s)
            for floor_s, fixed_s, factor in zip(floors, fixed, factors, strict=True)
        )

    def host_seconds(self, shape: StepShape) -> float:
        return self._device.host_per_step_s + self._device.host_per_seq_s * shape.num_seqs

    def breakdown(self, shape: StepShape, stage: int) -> StageSeconds:
        """The parts of one stage's time; ``launch_s`` is what launching adds to the others."""
        parts = self._parts(shape, stage)
        waiting_s = max(0.0, self._floors_of(shape.mode)[stage] - parts.total_s)
        return replace(parts, launch_s=parts.launch_s + waiting_s)

    def tables(self, mode: Mode, *, tokens: int, sampled: int) -> ModeTables | None:
        """What :meth:`stage_seconds` looks up for steps of ``mode`` with up to so many tokens and
        sampled rows; None on devices without curves."""
        if not isinstance(self._operators, CurveOperators):
            return None
        dense = self._fixed.dense(mode, tokens=tokens, sampled=sampled)
        return ModeTables(
            fixed=dense,
            fill=partial(self._fixed.fill, dense, mode),
            floors=tuple(self._floors_of(mode)),
            factors=tuple(self._attention_factors),
            attention=self._operators.attention_tables(),
        )

    def _parts(self, shape: StepShape, stage: int) -> StageSeconds:
        """The parts of one stage's time if launches run far enough ahead."""
        work = self._counter.stage(shape, stage)
        operators, factors = self._operators, self._factors
        return StageSeconds(
            gemm_s=factors.gemm * work.layers * operators.gemms_s(shape.mode, work.rows),
            attention_s=factors.attention * work.layers * operators.attention_s(shape),
            elementwise_s=operators.elementwise_s(work, is_first=stage == 0),
            head_s=factors.head * operators.head_s(work.sampled) if work.head else 0.0,
            sampling_s=self._sampling_s(work),
            launch_s=operators.launch_s(work),
            communication_s=factors.communication * self._communication_s(work, stage),
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

    def _floors_of(self, mode: Mode) -> list[float]:
        """The least time of each stage, whatever a step holds."""
        floors = self._floors.get(mode)
        if floors is None:
            shape = StepShape(mode=mode, num_seqs=1, num_decode_tokens=1, num_sampled=1)
            stages = range(self._counter.plan.pp)
            floors = [self._operators.floor_s(self._counter.stage(shape, s)) for s in stages]
            self._floors[mode] = floors
        return floors

    def _without_attention(self, mode: Mode, tokens: int, sampled: int) -> tuple[float, ...]:
        """Seconds of each stage at these sizes; stages with equal work are computed once."""
        shape = StepShape(mode=mode, num_seqs=tokens, num_decode_tokens=tokens, num_sampled=sampled)
        parts = {stage: self._parts(shape, stage) for stage in dict.fromkeys(self._alike)}
        return tuple(parts[stage].total_s - parts[stage].attention_s for stage in self._alike)


def _alike(counter: WorkCounter, placement: Placement) -> tuple[int, ...]:
    """For each stage, the first stage that does equal work and is reached over an equal link."""
    kinds = [(same, placement.is_far(stage)) for stage, same in enumerate(counter.alike)]
    return tuple(kinds.index(kind) for kind in kinds)


def _operators(
    device: DeviceSpec,
    model: ModelConfig,
    counter: WorkCounter,
    precision: Precision,
    launch: Launch,
    kv: KvFormat,
    factors: KernelFactors,
) -> Operators:
    curves, block_kernel = device.curves_for(precision), factors.block_kernel
    if curves is None:
        return PeakOperators(device, model, counter, precision, kv, block_kernel)
    return CurveOperators(
        device,
        curves,
        model,
        counter,
        precision,
        launch,
        kv,
        block_kernel=block_kernel,
        rounds_apart=factors.rounds_apart,
    )


def check_devices(plan: ParallelPlan, hardware: Hardware) -> None:
    """Raises TunerError where a plan needs more devices than there are."""
    if plan.world_size > hardware.count:
        raise TunerError(
            f"plan {plan} needs {plan.world_size} devices, {hardware} has {hardware.count}"
        )


def paced_timer(
    hardware: Hardware,
    model: ModelConfig,
    plan: ParallelPlan,
    dtype: DType | Precision,
    *,
    launch: Launch = Launch.GRAPH,
    sampler: SamplerSpec | None = None,
    factors: KernelFactors = MEASURED_KERNELS,
    kv: KvFormat = KvFormat.AUTO,
) -> RooflineTimer:
    """Step times of one replica of ``plan`` on ``hardware``; with ``sampler`` those of sampling
    too.

    Raises:
        PlanError: the model cannot run under the plan.
        TunerError: more devices than there are, or the device cannot compute in ``dtype``.
    """
    check_plan(plan, model)
    check_devices(plan, hardware)
    device, precision = hardware.device, Precision.of(dtype)
    if precision.peak not in device.dense_flops_per_s:
        takes = ", ".join(p for p in Precision if p.peak in device.dense_flops_per_s)
        raise TunerError(
            f"{device.name} has no peak for {precision.peak}; it takes the formats {takes}"
        )
    return RooflineTimer(device, model, plan, precision, launch, sampler, factors, kv)
