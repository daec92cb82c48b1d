"""Microbenchmarks of the engine's operators on one rank, in step with its peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.attention import attention
from engine.kernels.attention_plan import CacheShape, StepTables, plan_attention
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.rms_norm import rms_norm
from engine.kernels.rotary import RotaryAngles, rotary
from engine.kernels.silu_mul import silu_mul
from engine.models.rope import RopeTable
from engine.parallel.communicator import Communicator
from engine.rank.runner import TORCH_DTYPES
from engine.spec.model import DType, ModelConfig
from tuner.profiling.messages import OperatorJob, OperatorReport
from tuner.profiling.profile import (
    AttentionTime,
    CollectiveTime,
    ElementwiseTime,
    GemmTime,
    trimmed_mean,
)
from tuner.work.counts import CollectiveKind, GemmShape, layer_shapes

BLOCK_SIZE = 16
MAX_REPEATS = 200
FEW_ROWS = 64
# Weights are walked through in layers, like in a pass, so that caches are as cold.
MAX_WEIGHT_BYTES = 256 * 2**20
NUM_CACHES = 4
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SAMPLED_ROWS = (1, 4, 16, 64)
DECODES = ((1, 64), (1, 1024), (4, 256), (16, 64), (16, 512), (48, 256))
PREFILLS = ((16, 0), (64, 0), (256, 0), (512, 0), (64, 512), (256, 512))
ELEMENTWISE_ROWS = (1, 16, 128, 512)
COLLECTIVE_BYTES = (64, 1024, 8192, 32768, 131072, 524288, 2097152)


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Times calls on this rank while all ranks make the same ones."""

    group: Communicator
    device: torch.device
    seconds_per_point: float

    def seconds(self, call: Callable[[], object]) -> float:
        """Mean seconds of one call over the middle half of the repeats."""
        call()
        repeats = self._agree_on_repeats(self._timed(call))
        self.group.barrier()
        return trimmed_mean([self._timed(call) for _ in range(repeats)])

    def _timed(self, call: Callable[[], object]) -> float:
        self._sync()
        started_s = time.perf_counter()
        call()
        self._sync()
        return time.perf_counter() - started_s

    def _agree_on_repeats(self, once_s: float) -> int:
        """The same number on every rank, or collectives would not meet."""
        shared = self.group.all_reduce(torch.tensor([once_s], device=self.device))
        mean_s = max(float(shared.item()) / self.group.size, 1e-7)
        return int(min(MAX_REPEATS, max(3, self.seconds_per_point / mean_s)))

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_operators(job: OperatorJob, group: Communicator) -> OperatorReport:
    """Everything the job asks for, on this rank."""
    operators = _Operators(job, group)
    with torch.inference_mode():
        return OperatorReport(
            rank=job.setup.rank,
            gemms=operators.gemms(),
            attentions=operators.attentions(),
            elementwise=operators.elementwise(),
            collectives=operators.collectives() if group.size > 1 else [],
        )


class _Operators:
    """The operators of one model's shards on one rank."""

    def __init__(self, job: OperatorJob, group: Communicator) -> None:
        self._job = job
        self._model = ModelConfig.from_dir(Path(job.setup.model_dir))
        self._device = torch.device(job.setup.device)
        self._dtype = TORCH_DTYPES[DType(job.setup.dtype)]
        self._random = torch.Generator(device=self._device).manual_seed(job.setup.rank)
        num_points = len(job.degrees) * (len(ROWS) + len(DECODES) + len(PREFILLS) + 12)
        self._bench = _Bench(
            group=group, device=self._device, seconds_per_point=job.seconds / num_points
        )
        self._active = group.size

    def gemms(self) -> list[GemmTime]:
        """Layer products of every shard degree, and the head's."""
        found: dict[tuple[int, int, int], GemmTime] = {}
        for degree in self._job.degrees:
            layer = layer_shapes(self._model, degree).all
            weights = [self._weight(gemm, self._num_copies(layer)) for gemm in layer]
            for m in (m for m in ROWS if m <= self._job.max_tokens):
                for gemm, seconds in zip(layer, self._layer_seconds(m, weights), strict=True):
                    found[m, gemm.n, gemm.k] = self._gemm_time(m, gemm, seconds)
            head = GemmShape(n=-(-self._model.vocab_size // degree), k=self._model.hidden_size)
            weight = self._weight(head, 1)[0]
            for m in SAMPLED_ROWS:
                x = self._tensor(m, head.k)
                seconds = self._bench.seconds(partial(F.linear, x, weight))
                found[m, head.n, head.k] = self._gemm_time(m, head, seconds)
        return list(found.values())

    def attentions(self) -> list[AttentionTime]:
        """Decode batches and prefill chunks over the paged cache, per shard degree."""
        rows = []
        for degree in self._job.degrees:
            heads = self._model.num_heads // degree
            kv_heads = max(1, self._model.num_kv_heads // degree)
            for num_seqs, context in DECODES:
                rows.append(self._attention(num_seqs, 1, context, heads, kv_heads))
            for query, context in PREFILLS:
                rows.append(self._attention(1, query, context, heads, kv_heads))
        return [row for row in rows if row is not None]

    def elementwise(self) -> list[ElementwiseTime]:
        """Two norms, rotary angles, the gate and two residual sums, as one layer has them."""
        model, rows = self._model, []
        table = RopeTable(model, num_positions=4096, dtype=self._dtype, device=self._device)
        for degree in self._job.degrees:
            ffn, heads = model.ffn_size // degree, model.num_heads // degree
            norm = self._tensor(model.hidden_size)
            for tokens in ELEMENTWISE_ROWS:
                x, gated = self._tensor(tokens, model.hidden_size), self._tensor(tokens, 2 * ffn)
                queries = self._tensor(tokens, heads, model.head_dim)
                angles = table.angles(torch.arange(tokens, device=self._device))

                call = partial(_elementwise, x, gated, queries, norm, angles, model.rms_eps)
                rows.append(
                    ElementwiseTime(
                        tokens=tokens,
                        width=model.hidden_size + ffn,
                        active_ranks=self._active,
                        seconds=self._bench.seconds(call),
                    )
                )
        return rows

    def collectives(self) -> list[CollectiveTime]:
        """Each collective over the bytes that one rank hands in."""
        group, size = self._bench.group, self._active
        width = torch.empty(0, dtype=self._dtype).element_size()
        peer = (group.rank + 1) % size
        rows = []
        for num_bytes in COLLECTIVE_BYTES:
            elements = max(size, num_bytes // width)
            elements -= elements % size
            x, blocks = self._tensor(elements), self._tensor(size, elements // size)

            def hand_over(x: Tensor = x) -> None:
                """A send and a receive: the time of one hand-over."""
                if group.rank == 0:
                    group.send(x, peer)
                elif group.rank == 1:
                    group.recv(x, 0)

            calls: dict[CollectiveKind, Callable[[], object]] = {
                CollectiveKind.ALL_REDUCE: partial(group.all_reduce, x),
                CollectiveKind.ALL_GATHER: partial(group.all_gather, x),
                CollectiveKind.ALL_TO_ALL: partial(group.all_to_all, blocks),
                CollectiveKind.SEND: hand_over,
            }
            for kind, call in calls.items():
                seconds = self._bench.seconds(call)
                rows.append(
                    CollectiveTime(
                        kind=kind, ranks=size, num_bytes=elements * width, seconds=seconds
                    )
                )
        return rows

    def _layer_seconds(self, m: int, weights: list[list[Tensor]]) -> list[float]:
        """Seconds of each product of a layer, walking through the copies like through layers."""
        inputs = [self._tensor(m, copies[0].shape[1]) for copies in weights]
        taken: list[list[float]] = [[] for _ in weights]
        # With many rows the weights' way from memory no longer matters, but the time does.
        num_layers = len(weights[0]) if m <= FEW_ROWS else 1

        def one_pass() -> None:
            for layer in range(num_layers):
                for x, copies, seconds in zip(inputs, weights, taken, strict=True):
                    started_s = time.perf_counter()
                    F.linear(x, copies[layer])
                    if self._device.type == "cuda":
                        torch.cuda.synchronize(self._device)
                    seconds.append(time.perf_counter() - started_s)

        self._bench.seconds(one_pass)
        return [trimmed_mean(seconds[num_layers:]) for seconds in taken]

    def _attention(
        self, num_seqs: int, query: int, context: int, heads: int, kv_heads: int
    ) -> AttentionTime | None:
        total = context + query
        if total > self._job.max_context or query > self._job.max_tokens:
            return None
        blocks = -(-total // BLOCK_SIZE)
        shape = CacheShape(
            block_size=BLOCK_SIZE,
            num_kv_heads=kv_heads,
            head_dim=self._model.head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        caches = [self._cache(num_seqs * blocks, shape) for _ in range(NUM_CACHES)]
        tables = StepTables(
            query_lens=np.full(num_seqs, query, np.int64),
            context_lens=np.full(num_seqs, context, np.int64),
            block_tables=np.arange(num_seqs * blocks, dtype=np.int32).reshape(num_seqs, blocks),
        )
        plan = plan_attention(tables, shape)
        tokens, head_dim = num_seqs * query, self._model.head_dim
        queries = self._tensor(tokens, heads, head_dim)
        keys, values = (self._tensor(tokens, kv_heads, head_dim) for _ in range(2))

        def call() -> None:
            for cache in caches:
                attention(queries, keys, values, cache=cache, plan=plan)

        return AttentionTime(
            num_seqs=num_seqs,
            query=query,
            context=context,
            width=heads * head_dim,
            active_ranks=self._active,
            seconds=self._bench.seconds(call) / NUM_CACHES,
        )

    def _cache(self, num_blocks: int, shape: CacheShape) -> LayerCache:
        return allocate_cache(
            num_blocks=num_blocks,
            block_size=shape.block_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=shape.device,
        )

    def _gemm_time(self, m: int, gemm: GemmShape, seconds: float) -> GemmTime:
        return GemmTime(m=m, n=gemm.n, k=gemm.k, active_ranks=self._active, seconds=seconds)

    def _num_copies(self, layer: tuple[GemmShape, ...]) -> int:
        layer_bytes = (
            sum(g.n * g.k for g in layer) * torch.empty(0, dtype=self._dtype).element_size()
        )
        return int(max(1, min(self._model.num_layers, MAX_WEIGHT_BYTES // layer_bytes)))

    def _weight(self, gemm: GemmShape, copies: int) -> list[Tensor]:
        return [self._tensor(gemm.n, gemm.k) for _ in range(copies)]

    def _tensor(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self._random, device=self._device)
        return drawn.to(self._dtype)


def _elementwise(
    x: Tensor, gated: Tensor, queries: Tensor, norm: Tensor, angles: RotaryAngles, eps: float
) -> None:
    """What a layer does to every row besides its products and its attention."""
    for _ in range(2):
        x.add_(rms_norm(x, norm, eps), alpha=1e-6)
    rotary(queries, angles)
    silu_mul(gated, 1)
