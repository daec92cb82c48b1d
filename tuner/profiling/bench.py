"""Microbenchmarks of the engine's operators on one rank, in step with its peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.choice import layer_kernels
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.layer import HeadShape, LayerKernels
from engine.models.rope import rope_table
from engine.parallel.communicator import Communicator
from engine.parallel.products import OutputProduct, split_outputs
from engine.parallel.quantised import as_held, quantise
from engine.parallel.shards import Weight
from engine.rank.runner import TORCH_DTYPES
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE
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
# Products go through weights of several layers, as in a pass, so that caches are as cold.
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
            rank=job.rank,
            gemms=operators.gemms(),
            attentions=operators.attentions(),
            elementwise=operators.elementwise(),
            collectives=operators.collectives() if group.size > 1 else [],
        )


class _Operators:
    """The operators of one model's shards on one rank."""

    def __init__(self, job: OperatorJob, group: Communicator) -> None:
        self._job = job
        self._device = torch.device(job.device)
        self._dtype = TORCH_DTYPES[job.dtype]
        model = ModelConfig.from_dir(Path(job.model_dir))
        self._model = as_held(model, job.quantisation, self._dtype, self._device)
        self._random = torch.Generator(device=self._device).manual_seed(job.rank)
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
            products = [self._products(gemm, self._num_copies(layer)) for gemm in layer]
            for m in (m for m in ROWS if m <= self._job.max_tokens):
                taken = self._layer_seconds(m, layer, products)
                for gemm, seconds in zip(layer, taken, strict=True):
                    found[m, gemm.n, gemm.k] = self._gemm_time(m, gemm, seconds)
            head = GemmShape(n=-(-self._model.vocab_size // degree), k=self._model.hidden_size)
            product = self._head_product(head)
            for m in SAMPLED_ROWS:
                x = self._tensor(m, head.k)
                seconds = self._bench.seconds(partial(product, x))
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
        """Two norms with their residual sums and the gate, as one layer has them."""
        model, rows = self._model, []
        for degree in self._job.degrees:
            ffn = model.ffn_size // degree
            norm = self._tensor(model.hidden_size)
            kernels = self._kernels(self._cache_shape(1), num_q=1, num_positions=1)
            for tokens in ELEMENTWISE_ROWS:
                x, gated = self._tensor(tokens, model.hidden_size), self._tensor(tokens, 2 * ffn)
                call = partial(_elementwise, kernels, x, 1e-6 * x, gated, norm)
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

    def _products(self, gemm: GemmShape, num_copies: int) -> list[OutputProduct]:
        """Copies of a layer's weight, each packed or quantised where the engine would."""
        whole = {BASE: range(gemm.n)}
        return [
            split_outputs(self._as_loaded(weight), None, whole, may_pack=True)
            for weight in self._weight(gemm, num_copies)
        ]

    def _head_product(self, head: GemmShape) -> Callable[[Tensor], Tensor]:
        """The product with the head, which is quantised only where the checkpoint is at load."""
        weight = self._weight(head, 1)[0]
        held = self._model.quantisation
        if held is None or not held.has_head:
            return lambda x: F.linear(x, weight)
        whole = {BASE: range(head.n)}
        product = split_outputs(self._as_loaded(weight), None, whole, may_pack=True)
        return lambda x: product(x, BASE)

    def _as_loaded(self, weight: Tensor) -> Weight:
        held = self._model.quantisation
        return quantise(weight, held.format) if held is not None and held.is_kept else weight

    def _layer_seconds(
        self, m: int, layer: Sequence[GemmShape], products: list[list[OutputProduct]]
    ) -> list[float]:
        """Seconds of each product of a layer, walking through the copies like through layers."""
        inputs = [self._tensor(m, gemm.k) for gemm in layer]
        taken: list[list[float]] = [[] for _ in products]
        # With many rows the weights' way from memory no longer matters, but the time does.
        num_layers = len(products[0]) if m <= FEW_ROWS else 1

        def one_pass() -> None:
            for index in range(num_layers):
                for x, copies, seconds in zip(inputs, products, taken, strict=True):
                    started_s = time.perf_counter()
                    copies[index](x, BASE)
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
        shape = self._cache_shape(kv_heads)
        caches = [self._cache(num_seqs * blocks, shape) for _ in range(NUM_CACHES)]
        tables = StepTables(
            query_lens=np.full(num_seqs, query, np.int64),
            context_lens=np.full(num_seqs, context, np.int64),
            block_tables=np.arange(num_seqs * blocks, dtype=np.int32).reshape(num_seqs, blocks),
        )
        head_dim = self._model.head_dim
        step = self._kernels(shape, num_q=heads, num_positions=total).step(tables, num_seqs * query)
        qkv = self._tensor(num_seqs * query, (heads + 2 * kv_heads) * head_dim)

        def call() -> None:
            for cache in caches:
                step.attend(qkv, qk_norm=None, cache=cache)

        return AttentionTime(
            num_seqs=num_seqs,
            query=query,
            context=context,
            width=heads * head_dim,
            active_ranks=self._active,
            seconds=self._bench.seconds(call) / NUM_CACHES,
        )

    def _kernels(self, cache: CacheShape, *, num_q: int, num_positions: int) -> LayerKernels:
        """The operations that a rank with these heads would run."""
        rope = rope_table(
            self._model, num_positions=num_positions, dtype=self._dtype, device=self._device
        )
        shape = HeadShape(cache=cache, num_q=num_q, rms_eps=self._model.rms_eps)
        return layer_kernels(shape, rope)

    def _cache_shape(self, kv_heads: int) -> CacheShape:
        return CacheShape(
            block_size=BLOCK_SIZE,
            num_kv_heads=kv_heads,
            head_dim=self._model.head_dim,
            dtype=self._dtype,
            device=self._device,
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
    kernels: LayerKernels, x: Tensor, delta: Tensor, gated: Tensor, norm: Tensor
) -> None:
    """What a layer does to every row besides its products and its attention."""
    for _ in range(2):
        kernels.add_norm(x, delta, norm)
    kernels.silu_mul(gated, 1)
