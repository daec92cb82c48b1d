"""Each kernel at the shapes of an 8B model, beside the least time its bytes or products take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.timing import Call, Ceilings, time_us
from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.gpu.decode import decode
from engine.kernels.gpu.heads import place_heads
from engine.kernels.gpu.layer import TritonAttention, TritonKernels
from engine.kernels.gpu.one_row import one_row
from engine.kernels.gpu.prefill import prefill
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.layer import HeadShape
from engine.parallel.quantised import Quantised, multiply, quantise
from engine.spec.model import ModelConfig
from engine.spec.quantisation import WeightFormat

BLOCK_SIZE = 16
# More than any cache of the device holds.
ROTATED_BYTES = 512 * 2**20
MOST_COPIES = 16
FP8 = WeightFormat.FP8


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """One kernel at one shape; ``other_us`` is what torch's own operation takes, if it has one."""

    name: str
    shape: str
    us: float
    floor_us: float
    other_us: float | None = None

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.floor_us / self.us


class KernelBench:
    """Times the kernels for one model's heads and widths."""

    def __init__(self, model: ModelConfig, ceilings: Ceilings) -> None:
        self._model = model
        self._ceilings = ceilings
        self._device = torch.device("cuda")
        self._dtype = torch.bfloat16
        self._shape = HeadShape(
            cache=CacheShape(
                block_size=BLOCK_SIZE,
                num_kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                dtype=self._dtype,
                device=self._device,
            ),
            num_q=model.num_heads,
            rms_eps=model.rms_eps,
        )

    def run(self) -> Iterator[KernelTime]:
        for num_seqs, context in ((1, 1024), (1, 8192), (32, 1024), (128, 1024), (128, 4096)):
            yield self._decode(num_seqs, context)
        for new, context in ((8192, 0), (2048, 6144), (512, 16384), (512, 0)):
            yield self._prefill(new, context)
        for rows in (1, 128, 8192):
            yield from self._rows(rows)
        for name, outputs, inputs in self._matrices():
            yield self._one_row(name, outputs, inputs)
        for form, group in ((FP8, 0), (FP8, 128), (WeightFormat.INT8, 0)):
            for rows in (1, 128, 2048):
                yield self._quantised(form, group, rows)

    def _decode(self, num_seqs: int, context: int) -> KernelTime:
        num_bytes = 2 * num_seqs * context * self._model.kv_size * self._dtype.itemsize
        step, caches, qkv = self._step([(1, context - 1)] * num_seqs, num_bytes)
        out = self._draw(len(qkv), self._model.q_size)

        def call(cache: LayerCache) -> Call:
            return lambda: decode(qkv, out, cache=cache, tables=step.tables, shape=self._shape)

        us = time_us([call(cache) for cache in caches])
        floor_us = self._ceilings.floor_us(num_bytes=num_bytes)
        return KernelTime(
            name="decode attention", shape=f"{num_seqs} x {context:,}", us=us, floor_us=floor_us
        )

    def _prefill(self, new: int, context: int) -> KernelTime:
        pairs = new * context + new * (new + 1) / 2
        step, caches, qkv = self._step([(new, context)], ROTATED_BYTES)
        out = self._draw(len(qkv), self._model.q_size)
        us = time_us(
            [lambda: prefill(qkv, out, cache=caches[0], tables=step.tables, shape=self._shape)]
        )
        floor_us = self._ceilings.floor_us(flops=4 * pairs * self._model.q_size)
        shape = f"{new:,} after {context:,}"
        return KernelTime(name="prefill attention", shape=shape, us=us, floor_us=floor_us)

    def _rows(self, rows: int) -> Iterator[KernelTime]:
        model, shape = self._model, f"{rows:,} rows"
        kernels = TritonKernels(shape=self._shape, rope=self._draw(1, 1))
        copies = self._copies(4 * rows * model.hidden_size * 2)
        sums = [self._draw(rows, model.hidden_size) for _ in range(copies)]
        delta, weight = self._draw(rows, model.hidden_size), self._draw(model.hidden_size)

        def norm(x: Tensor) -> Call:
            return lambda: kernels.add_norm(x, delta, weight)

        yield self._timed("sum and norm", shape, [norm(x) for x in sums], 4 * sums[0].nbytes)
        copies = self._copies(3 * rows * model.ffn_size * 2)
        gates = [self._draw(rows, 2 * model.ffn_size) for _ in range(copies)]

        def gate(x: Tensor) -> Call:
            return lambda: kernels.silu_mul(x, 1)

        yield self._timed("gate", shape, [gate(x) for x in gates], 1.5 * gates[0].nbytes)
        sequences = [(1, 1023)] * rows if rows <= 128 else [(rows, 0)]
        step, caches, qkv = self._step(sequences, ROTATED_BYTES)
        out = self._draw(rows, model.q_size)

        def place() -> None:
            place_heads(
                qkv,
                out,
                qk_norm=None,
                rope=step.rope,
                cache=caches[0],
                tables=step.tables,
                shape=self._shape,
            )

        moved = 2 * qkv.nbytes + rows * 2 * model.head_dim * 2
        yield self._timed("rotation and cache write", shape, [place], moved)

    def _one_row(self, name: str, outputs: int, inputs: int) -> KernelTime:
        x, num_bytes = self._draw(1, inputs), outputs * inputs * 2
        weights = [self._draw(outputs, inputs) for _ in range(self._copies(num_bytes))]

        def ours(weight: Tensor) -> Call:
            return lambda: one_row(x, weight, None)

        def theirs(weight: Tensor) -> Call:
            return lambda: torch.nn.functional.linear(x, weight)

        return KernelTime(
            name=f"one row by {name}",
            shape=f"{outputs:,} x {inputs:,}",
            us=time_us([ours(weight) for weight in weights]),
            floor_us=self._ceilings.floor_us(num_bytes=num_bytes),
            other_us=time_us([theirs(weight) for weight in weights]),
        )

    def _quantised(self, form: WeightFormat, group: int, rows: int) -> KernelTime:
        """Rows by gate and up, beside the same product of plain weights."""
        outputs, inputs = 2 * self._model.ffn_size, self._model.hidden_size
        x, num_bytes = self._draw(rows, inputs), outputs * inputs
        plain = [self._draw(outputs, inputs) for _ in range(self._copies(num_bytes))]

        def ours(weight: Quantised) -> Call:
            return lambda: multiply(x, weight)

        def theirs(weight: Tensor) -> Call:
            return lambda: torch.nn.functional.linear(x, weight)

        # Devices multiply fp8 twice as fast as bf16, as which they multiply the others.
        flops = 2.0 * rows * num_bytes / (2 if form is FP8 and rows > 1 else 1)
        return KernelTime(
            name=f"{form.value}, a scale for {f'{group} numbers' if group else 'a row'}",
            shape=f"{rows:,} rows by {outputs:,} x {inputs:,}",
            us=time_us([ours(_in_groups(quantise(each, form), group)) for each in plain]),
            floor_us=self._ceilings.floor_us(num_bytes=num_bytes, flops=flops),
            other_us=time_us([theirs(each) for each in plain]),
        )

    def _timed(self, name: str, shape: str, calls: list[Call], num_bytes: float) -> KernelTime:
        return KernelTime(
            name=name,
            shape=shape,
            us=time_us(calls),
            floor_us=self._ceilings.floor_us(num_bytes=num_bytes),
        )

    def _matrices(self) -> tuple[tuple[str, int, int], ...]:
        model = self._model
        return (
            ("qkv", model.q_size + 2 * model.kv_size, model.hidden_size),
            ("o", model.hidden_size, model.q_size),
            ("gate and up", 2 * model.ffn_size, model.hidden_size),
            ("down", model.hidden_size, model.ffn_size),
        )

    def _step(
        self, sequences: list[tuple[int, int]], num_bytes: float
    ) -> tuple[TritonAttention, list[LayerCache], Tensor]:
        """Attention of ``sequences`` (new, cached), caches of ``num_bytes`` read, and its input."""
        widths = [-(-(new + cached) // BLOCK_SIZE) for new, cached in sequences]
        blocks = np.random.default_rng(0).permutation(sum(widths)).astype(np.int32)
        tables = np.full((len(sequences), max(widths)), -1, np.int32)
        for row, width in enumerate(widths):
            tables[row, :width], blocks = blocks[:width], blocks[width:]
        found = StepTables(
            query_lens=np.array([new for new, _ in sequences]),
            context_lens=np.array([cached for _, cached in sequences]),
            block_tables=tables,
        )
        cache = self._shape.cache
        caches = []
        for _ in range(self._copies(num_bytes)):
            caches.append(
                allocate_cache(
                    num_blocks=sum(widths),
                    block_size=BLOCK_SIZE,
                    num_kv_heads=cache.num_kv_heads,
                    head_dim=cache.head_dim,
                    dtype=cache.dtype,
                    device=cache.device,
                )
            )
            caches[-1].keys.normal_()
            caches[-1].values.normal_()
        num_rows = int(found.query_lens.sum())
        rope = torch.randn(int(found.totals.max()), cache.head_dim, device=cache.device)
        kernels = TritonKernels(shape=self._shape, rope=rope)
        qkv = self._draw(num_rows, self._model.q_size + 2 * self._model.kv_size)
        return kernels.step(found, num_rows), caches, qkv

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self._dtype, device=self._device)

    def _copies(self, num_bytes: float) -> int:
        return int(min(MOST_COPIES, max(1, -(-ROTATED_BYTES // max(1, num_bytes)))))


def _in_groups(weight: Quantised, group: int) -> Quantised:
    """The same weight with a scale for each ``group`` columns of a row; 0: for the row."""
    if not group:
        return weight
    scales = weight.scales.expand(weight.shape[1] // group, -1).contiguous()
    return replace(weight, scales=scales, group=group)
