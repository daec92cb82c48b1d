"""A roofline timer: how long steps take on described hardware, from peaks and efficiencies.

Used to pace simulated engines of machines that are not here. Uncalibrated: read its numbers as
the right order of size and the right direction, not as a promise.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import DType, ModelConfig
from engine.plan import Mode, ParallelPlan, check_plan
from engine.steps import StepShape
from tuner.errors import TunerError
from tuner.features import Collective, CollectiveKind, GemmShape, StageWork, WorkCounter
from tuner.hardware.device import DeviceSpec, Hardware


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Where the time of one stage goes."""

    gemm_s: float
    attention_s: float
    elementwise_s: float
    head_s: float
    launch_s: float
    communication_s: float

    @property
    def total_s(self) -> float:
        return (
            self.gemm_s
            + self.attention_s
            + self.elementwise_s
            + self.head_s
            + self.launch_s
            + self.communication_s
        )


class RooflineTimer:
    """A :class:`engine.executors.protocol.StepTimer` for ``plan`` on ``device``."""

    def __init__(self, device: DeviceSpec, model: ModelConfig, plan: ParallelPlan, dtype: DType):
        self._device = device
        self._num_bytes = dtype.num_bytes
        self._hidden = model.hidden_size
        self._counter = WorkCounter(model, plan.replica, dtype)
        self._compute = device.flops_per_s(dtype)
        self._memory = device.achievable_bytes_per_s
        self._seen: dict[tuple[Mode, int, int], tuple[float, ...]] = {}
        peak = self._compute / device.efficiency.gemm * device.efficiency.attention
        self._s_per_pair = 4.0 * self._counter.attention_width / peak
        self._s_per_context_token = self._counter.kv_width / self._memory

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        key = (shape.mode, shape.num_tokens, shape.num_sampled)
        without_attention = self._seen.get(key)
        if without_attention is None:
            without_attention = self._seen[key] = self._without_attention(shape)
        attention_s = self._attention_s(shape)
        return tuple(
            seconds + layers * attention_s
            for seconds, layers in zip(
                without_attention, self._counter.layers_of_stage, strict=True
            )
        )

    def host_seconds(self, shape: StepShape) -> float:
        return self._device.host_per_step_s + self._device.host_per_seq_s * shape.num_seqs

    def breakdown(self, shape: StepShape, stage: int) -> StageSeconds:
        """The parts of one stage's time."""
        work = self._counter.stage(shape, stage)
        kernels = self._device.kernels_per_layer * work.layers
        return StageSeconds(
            gemm_s=work.layers * sum(self._gemm_s(g, work.rows) for g in work.layer.all),
            attention_s=work.layers * self._attention_s(shape),
            elementwise_s=self._elementwise_s(work),
            head_s=self._gemm_s(work.head, work.sampled) if work.head else 0.0,
            launch_s=kernels * self._device.kernel_launch_s,
            communication_s=sum(self._collective_s(c) for c in work.collectives),
        )

    def _without_attention(self, shape: StepShape) -> tuple[float, ...]:
        """What depends on tokens and mode only; asked anew for every new size."""
        alike = self._counter.alike
        parts = {stage: self.breakdown(shape, stage) for stage in dict.fromkeys(alike)}
        return tuple(parts[stage].total_s - parts[stage].attention_s for stage in alike)

    def _attention_s(self, shape: StepShape) -> float:
        """One layer's attention: two products per pair and channel, or the cache's way in."""
        pairs = shape.prefill_attention_pairs + shape.decode_context_tokens
        context = shape.prefill_context_tokens + shape.decode_context_tokens
        return max(pairs * self._s_per_pair, context * self._s_per_context_token)

    def _gemm_s(self, gemm: GemmShape, rows: int) -> float:
        size = self._num_bytes
        traffic = (gemm.n * gemm.k + rows * (gemm.n + gemm.k)) * size
        return max(2.0 * rows * gemm.n * gemm.k / self._compute, traffic / self._memory)

    def _elementwise_s(self, work: StageWork) -> float:
        """Norms, residuals, rotary angles and the gate: about 10 passes over the hidden rows
        and 3 over the FFN's."""
        ffn = work.layer.down.k
        per_row = (10 * self._hidden + 3 * ffn) * self._num_bytes
        return work.layers * work.rows * per_row / self._memory

    def _collective_s(self, collective: Collective) -> float:
        link, ranks = self._device.link, collective.ranks
        share = (ranks - 1) / ranks
        match collective.kind:
            case CollectiveKind.ALL_REDUCE:
                latency_s, factor = link.all_reduce_latency_s, 2 * share
            case CollectiveKind.ALL_TO_ALL:
                latency_s, factor = link.all_to_all_latency_s, share
            case CollectiveKind.ALL_GATHER:
                latency_s, factor = link.all_to_all_latency_s, float(ranks - 1)
            case CollectiveKind.SEND:
                latency_s, factor = link.send_latency_s, 1.0
        transfer_s = collective.num_bytes * factor / link.bytes_per_s
        return collective.count * (latency_s + transfer_s)


def paced_timer(
    hardware: Hardware, model: ModelConfig, plan: ParallelPlan, dtype: DType
) -> RooflineTimer:
    """Step times of one replica of ``plan`` on ``hardware``.

    Raises:
        PlanError: the model cannot run under the plan.
        TunerError: more devices than there are, or no peak for ``dtype``.
    """
    check_plan(plan, model)
    if plan.world_size > hardware.count:
        raise TunerError(
            f"plan {plan} needs {plan.world_size} devices, {hardware} has {hardware.count}"
        )
    if dtype.value not in hardware.device.dense_flops_per_s:
        known = ", ".join(hardware.device.dense_flops_per_s)
        raise TunerError(f"{hardware.device.name} has no peak for {dtype.value}; known: {known}")
    return RooflineTimer(hardware.device, model, plan, dtype)
