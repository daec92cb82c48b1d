"""What the operators of a step cost on a device: the protocol, and the estimate from peaks."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.steps import StepShape
from tuner.hardware.block_scaled import BlockKernel
from tuner.hardware.collectives import CollectiveTimes
from tuner.hardware.device import DeviceSpec
from tuner.hardware.precision import KvFormat, Precision
from tuner.work.counts import (
    Collective,
    GemmShape,
    StageWork,
    WorkCounter,
)


class Operators(Protocol):
    """Seconds of the operators of one rank of one plan. Same question, same answer; no I/O."""

    def gemms_s(self, mode: Mode, rows: int) -> float:
        """The four products of one layer with ``rows`` rows each."""
        ...

    def head_s(self, sampled: int) -> float:
        """The product of ``sampled`` rows with the rank's part of the head."""
        ...

    def attention_s(self, shape: StepShape) -> float:
        """Attention of one layer over all sequences of the step."""
        ...

    def elementwise_s(self, work: StageWork, *, is_first: bool) -> float:
        """Norms, rotary angles and activations of a stage, and the embedding on the first."""
        ...

    def collective_s(self, collective: Collective, *, is_far: bool = False) -> float:
        """All ``count`` equal collectives; ``is_far`` is about sends: to another node."""
        ...

    def launch_s(self, work: StageWork) -> float:
        """What launching kernels adds to a stage."""
        ...

    def floor_s(self, work: StageWork) -> float:
        """How long it takes to launch a stage when launches run ahead of the device: a floor on the
        stage's time."""
        ...


class PeakOperators:
    """Operators from data-sheet peaks times typical efficiencies."""

    def __init__(
        self,
        device: DeviceSpec,
        model: ModelConfig,
        counter: WorkCounter,
        precision: Precision,
        kv: KvFormat = KvFormat.AUTO,
        block_kernel: BlockKernel = BlockKernel.CUTLASS,
    ) -> None:
        self._device = device
        self._block_kernel = block_kernel
        self._hidden = model.hidden_size
        self._counter = counter
        self._precision = precision
        self._bytes = precision.dtype.num_bytes
        efficiency = device.efficiency
        self._memory = device.achievable_bytes_per_s
        attention_peak = device.dense_flops_per_s[precision.dtype.value] * efficiency.attention
        self._s_per_pair = 4.0 * counter.attention_width / attention_peak
        kv_share = kv.share_of(precision.dtype)
        self._s_per_context_token = kv_share * counter.kv_width / self._memory
        self._collectives = CollectiveTimes(device, None, counter.plan, launch="graph")

    def gemms_s(self, mode: Mode, rows: int) -> float:
        gemms = self._counter.layer(mode).all
        return sum(self._gemm_s(gemm, rows, self._precision) for gemm in gemms)

    def head_s(self, sampled: int) -> float:
        return self._gemm_s(self._counter.head, sampled, self._precision.of_ends)

    def attention_s(self, shape: StepShape) -> float:
        """Two products per pair and channel, or the cache's way in."""
        pairs = shape.prefill_attention_pairs + shape.decode_context_tokens
        context = shape.prefill_context_tokens + shape.decode_context_tokens
        return max(pairs * self._s_per_pair, context * self._s_per_context_token)

    def elementwise_s(self, work: StageWork, *, is_first: bool) -> float:  # noqa: ARG002 - Operators
        """About 10 passes over the hidden rows and 3 over the FFN's."""
        ffn = work.layer.down.k
        per_row = (10 * self._hidden + 3 * ffn) * self._bytes
        return work.layers * work.rows * per_row / self._memory

    def collective_s(self, collective: Collective, *, is_far: bool = False) -> float:
        return self._collectives.seconds(collective, is_far=is_far)

    def launch_s(self, work: StageWork) -> float:
        """Every kernel's, since efficiencies do not hold it."""
        return self._device.kernels_per_layer * work.layers * self._device.kernel_launch_s

    def floor_s(self, work: StageWork) -> float:  # noqa: ARG002 - one of Operators
        return 0.0

    def _gemm_s(self, gemm: GemmShape, rows: int, precision: Precision) -> float:
        weights = gemm.n * gemm.k
        traffic = weights * precision.weight_bytes + rows * (gemm.n + gemm.k) * self._bytes
        compute_s = 2.0 * rows * weights / self._device.flops_per_s(precision)
        seconds = max(compute_s, traffic / self._memory)
        if precision is not Precision.FP8_BLOCK:
            return seconds
        one_scale_s, m, n, k = np.array([[seconds], [rows], [gemm.n], [gemm.k]], dtype=np.float64)
        chip = self._device.chip
        return float(self._block_kernel.seconds(one_scale_s, m=m, n=n, k=k, chip=chip)[0])
