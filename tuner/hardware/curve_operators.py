"""Operators from fitted curves, tabulated for one plan before a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.steps import StepShape
from tuner.hardware.block_scaled import BlockKernel
from tuner.hardware.chunks import chunk_seconds
from tuner.hardware.collectives import CollectiveTimes
from tuner.hardware.curves import Curves
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import ACTIVATION_BYTES, HEAD_DIM, Peaks, decode_work, gemm_work
from tuner.hardware.precision import KvFormat, Precision
from tuner.hardware.tables import (
    DECODE_CONTEXT,
    DECODE_SEQS,
    PREFILL_QUERIES,
    PREFILL_SEQS,
    PREFIX,
    ROW_GRID,
    Grid2,
    Grid3,
    RowTable,
)
from tuner.work.counts import (
    Collective,
    GemmShape,
    StageWork,
    WorkCounter,
)


class Launch(StrEnum):
    """How kernels are launched: replayed from captured graphs, or one by one."""

    GRAPH = "graph"
    EAGER = "eager"


@dataclass(frozen=True, kw_only=True)
class AttentionTables:
    """Seconds of one layer's attention: of decodes over sequences and context, of chunks over
    sequences, queries and prefix; a step that has both pays ``shared_s`` once."""

    decode: Grid2
    prefill: Grid3
    shared_s: float


class CurveOperators:
    """Operators of one rank of ``counter.plan`` on a calibrated device.

    Two norms per layer are counted; the residual's addition is fused into them, as served
    engines do.
    """

    def __init__(
        self,
        device: DeviceSpec,
        curves: Curves,
        model: ModelConfig,
        counter: WorkCounter,
        precision: Precision,
        launch: Launch,
        kv: KvFormat = KvFormat.AUTO,
        *,
        block_kernel: BlockKernel = BlockKernel.CUTLASS,
        rounds_apart: bool = True,
    ) -> None:
        self._device, self._curves, self._launch = device, curves, launch
        self._block_kernel, self._rounds_apart = block_kernel, rounds_apart
        self._model, self._counter = model, counter
        self._plan = counter.plan
        self._precision = precision
        self._layers: dict[Mode, RowTable] = {}
        self._head = self._gemm_table((counter.head,), precision.of_ends)
        self._heads = counter.attention_width / HEAD_DIM
        kv_channels = counter.kv_width / 2 / precision.dtype.num_bytes
        self._kv_heads = kv_channels / HEAD_DIM
        self._kv_share = kv.share_of(precision.dtype)
        self._decode = self._decode_table()
        self._prefill = self._prefill_table()
        self._collectives = CollectiveTimes(device, curves, self._plan, launch.value)

    def gemms_s(self, mode: Mode, rows: int) -> float:
        table = self._layers.get(mode)
        if table is None:
            shapes = self._counter.layer(mode).all
            table = self._layers[mode] = self._gemm_table(shapes, self._precision)
        return table.at(rows)

    def head_s(self, sampled: int) -> float:
        return self._head.at(sampled)

    def attention_s(self, shape: StepShape) -> float:
        """Prefill chunks and decode rows share one call: its fixed cost is counted once."""
        decodes = shape.num_decode_tokens
        prefills = shape.num_seqs - decodes
        decode_s = self._decode.at(decodes, shape.decode_context_tokens / decodes) if decodes else 0
        if prefills <= 0 or shape.num_prefill_tokens <= 0:
            return decode_s
        queries = shape.num_prefill_tokens / prefills
        keys = shape.prefill_attention_pairs / shape.num_prefill_tokens
        prefix = max(0.0, keys - (queries + 1) / 2)
        prefill_s = self._prefill.at(prefills, queries, prefix)
        shared_s = self._curves.decode.roofline.call_s
        return prefill_s + max(0.0, decode_s - shared_s)

    def attention_tables(self) -> AttentionTables:
        """What :meth:`attention_s` looks up."""
        shared_s = self._curves.decode.roofline.call_s
        return AttentionTables(decode=self._decode, prefill=self._prefill, shared_s=shared_s)

    def elementwise_s(self, work: StageWork, *, is_first: bool) -> float:
        """Rotary angles after the heads were exchanged, norms and activation on the rank's rows."""
        small = self._curves.small
        hidden = self._model.hidden_size
        row = work.rows * ACTIVATION_BYTES
        rope = 2 * HEAD_DIM * (self._heads + self._kv_heads) * ACTIVATION_BYTES
        layer_s = (
            2 * small["norm"].seconds(2 * hidden * row)
            + small["rope"].seconds(rope * work.tokens)
            + small["activation"].seconds(3 * work.layer.down.k * row)
        )
        embedding_s = small["embedding"].seconds(2 * hidden * row) if is_first else 0.0
        return work.layers * layer_s + embedding_s

    def collective_s(self, collective: Collective, *, is_far: bool = False) -> float:
        return self._collectives.seconds(collective, is_far=is_far)

    def launch_s(self, work: StageWork) -> float:  # noqa: ARG002 - one of Operators
        """None: measured calls hold their own."""
        return 0.0

    def floor_s(self, work: StageWork) -> float:
        if self._launch is Launch.GRAPH:
            return 0.0
        kernels_s = self._device.kernels_per_layer * work.layers * self._device.kernel_launch_s
        return kernels_s + sum(self._collectives.issue_s(c) for c in work.collectives)

    # -- tables ----------------------------------------------------------------------------------

    def _gemm_table(self, gemms: tuple[GemmShape, ...], precision: Precision) -> RowTable:
        """The sum of several products over rows.

        Products with int4 weights were never measured: they take the roofline of 16-bit ones, with
        fewer bytes to read and a lower rate. The correction beyond that law was learned on 16-bit
        weights, so it is left out. Block-scaled products follow those with one scale.
        """
        shapes = len(gemms)
        # Every product at every number of rows, so that the curve is asked once.
        m = np.tile(ROW_GRID, shapes)
        n = np.repeat([float(g.n) for g in gemms], len(ROW_GRID))
        k = np.repeat([float(g.k) for g in gemms], len(ROW_GRID))
        work = gemm_work(
            self._peaks(precision),
            m,
            n,
            k,
            operand_bytes=precision.operand_bytes,
            weight_bytes=precision.weight_bytes,
        )
        curve = self._curves.gemm[precision.curve]
        is_like = precision is not Precision.INT4
        seconds = curve.seconds(work) if is_like else curve.roofline.seconds(work)
        if precision is Precision.FP8_BLOCK:
            seconds = self._block_kernel.seconds(seconds, m=m, n=n, k=k, chip=self._device.chip)
        elif precision is Precision.FP8 and not self._rounds_apart:
            # The curves hold a pass that reads two bytes of an activation and writes one.
            pass_s = 3.0 * m * k / self._device.achievable_bytes_per_s
            seconds = np.maximum(seconds - pass_s, seconds / 2)
        return RowTable(seconds.reshape(shapes, -1).sum(axis=0))

    def _decode_table(self) -> Grid2:
        seqs, context = np.meshgrid(DECODE_SEQS.points, DECODE_CONTEXT.points, indexing="ij")
        work = decode_work(
            self._peaks(Precision.BF16),
            seqs=seqs.ravel(),
            context=context.ravel(),
            heads=np.full(seqs.size, self._heads),
            kv_heads=np.full(seqs.size, self._kv_heads),
            kv_share=self._kv_share,
        )
        seconds = self._curves.decode.seconds(work).reshape(seqs.shape)
        return Grid2(DECODE_SEQS, DECODE_CONTEXT, seconds)

    def _prefill_table(self) -> Grid3:
        axes = (PREFILL_SEQS, PREFILL_QUERIES, PREFIX)
        # Open grids: they broadcast to all combinations only where a formula needs them.
        seqs, queries, prefix = np.ix_(*(np.array(axis.points, dtype=float) for axis in axes))
        seconds = chunk_seconds(
            self._curves.prefill,
            self._peaks(Precision.BF16),
            kernel_s=self._device.kernel_launch_s,
            seqs=seqs,
            queries=queries,
            prefix=prefix,
            heads=self._heads,
            kv_heads=self._kv_heads,
            kv_share=self._kv_share,
        )
        return Grid3(*axes, seconds)

    def _peaks(self, precision: Precision) -> Peaks:
        return Peaks(
            flops_per_s=self._device.dense_flops_per_s[precision.peak] * precision.compute_rate,
            bytes_per_s=self._device.memory_bytes_per_s,
            num_sms=self._device.num_sms,
        )
