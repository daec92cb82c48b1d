"""What a step asks of one rank: matrix products, attention, memory traffic, collectives.

Pure arithmetic over the step's shape (arXiv 2509.16495, section 3, for the base pass), so the
roofline timer, the fitted step model and the simulator all count the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE, Mode
from engine.spec.plan import ParallelPlan, stage_layers
from engine.spec.steps import StepShape


class CollectiveKind(StrEnum):
    """The collectives a pass uses."""

    ALL_REDUCE = "all_reduce"
    ALL_TO_ALL = "all_to_all"
    ALL_GATHER = "all_gather"
    SEND = "send"


class LogitsExchange(StrEnum):
    """What travels before a step's rows are sampled on several ranks: all logits to all ranks, each
    row to the rank that samples it, or each shard's largest logit."""

    GATHER = "gather"
    ROWS = "rows"
    LARGEST = "largest"


@dataclass(frozen=True, kw_only=True)
class Collective:
    """``count`` equal collectives over ``ranks`` members.

    ``num_bytes`` is what one rank hands in: its whole tensor for a reduction or an all-to-all,
    its own part for a gather or a send.
    """

    kind: CollectiveKind
    ranks: int
    num_bytes: float
    count: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GemmShape:
    """Weights of one product: ``[m, k] @ [k, n]`` for any number of rows m."""

    n: int
    k: int


@dataclass(frozen=True, kw_only=True)
class LayerShapes:
    """The products of one decoder layer on one rank, in the order they run."""

    qkv: GemmShape
    o: GemmShape
    gate_up: GemmShape
    down: GemmShape

    @property
    def all(self) -> tuple[GemmShape, ...]:
        return (self.qkv, self.o, self.gate_up, self.down)

    @property
    def weights(self) -> int:
        """Parameters read once per pass."""
        return sum(gemm.n * gemm.k for gemm in self.all)


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Work of one rank of one pipeline stage for one step.

    ``rows`` is m of the layer products, ``tokens`` the rows attention sees (all of the step).
    ``sampled`` is 0 except on the last stage. ``finished_rows`` go through all of the last layer,
    the others through its first product and attention.
    """

    layers: int
    rows: int
    tokens: int
    layer: LayerShapes
    head: GemmShape | None
    sampled: int
    finished_rows: int
    collectives: tuple[Collective, ...]


@dataclass(frozen=True)
class WorkCounter:
    """Counts the work of steps of one model under one plan (of one replica).

    With ``ends_early`` only sampled rows go through all of the last layer, as in this engine.
    """

    model: ModelConfig
    plan: ParallelPlan
    dtype: DType
    exchange: LogitsExchange = LogitsExchange.GATHER
    ends_early: bool = False

    @cached_property
    def layers_of_stage(self) -> tuple[int, ...]:
        return tuple(len(layers) for layers in stage_layers(self.model.num_layers, self.plan.pp))

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each stage the first stage that does equal work: inner stages often do."""
        last = self.plan.pp - 1
        kinds = [(n, p == 0, p == last) for p, n in enumerate(self.layers_of_stage)]
        return tuple(kinds.index(kind) for kind in kinds)

    @cached_property
    def _num_bytes(self) -> int:
        return self.dtype.num_bytes

    @cached_property
    def attention_width(self) -> int:
        """Query heads times head size on a rank."""
        return self.model.q_size // self.plan.stage_size

    @cached_property
    def kv_width(self) -> int:
        """Bytes of keys and values per token and layer on a rank."""
        heads = self.model.kv_heads_per_rank(self.plan)
        return 2 * heads * self.model.head_dim * self._num_bytes

    @cached_property
    def _shapes(self) -> dict[int, LayerShapes]:
        """Layer shapes for each degree of tensor parallelism that was asked for."""
        return {}

    def layer(self, mode: Mode) -> LayerShapes:
        """The products of a layer in ``mode``."""
        degree = self.plan.rung(mode).tp
        found = self._shapes.get(degree)
        if found is None:
            found = self._shapes[degree] = layer_shapes(self.model, degree)
        return found

    @cached_property
    def head(self) -> GemmShape:
        """The head's shift view: vocabulary over all ranks of the stage, in every mode."""
        rows = -(-self.model.vocab_size // self.plan.stage_size)
        return GemmShape(n=rows, k=self.model.hidden_size)

    def rows(self, shape: StepShape) -> int:
        """Rows each rank multiplies: its slice of the padded batch, in shift all."""
        return -(-shape.num_tokens // self.plan.rung(shape.mode).sp)

    def stage(self, shape: StepShape, stage: int) -> StageWork:
        """Work of one rank of pipeline stage ``stage``."""
        plan = self.plan
        is_last = stage == plan.pp - 1
        layers, rows = self.layers_of_stage[stage], self.rows(shape)
        finished = min(rows, shape.num_sampled) if is_last and self.ends_early else rows
        return StageWork(
            layers=layers,
            rows=rows,
            tokens=shape.num_tokens,
            layer=self.layer(shape.mode),
            head=self.head if is_last else None,
            sampled=shape.num_sampled if is_last else 0,
            finished_rows=finished,
            collectives=(
                *self._layer_collectives(shape, layers, finished),
                *self._edge_collectives(shape, stage),
            ),
        )

    def _layer_collectives(
        self, shape: StepShape, layers: int, finished_rows: int
    ) -> list[Collective]:
        """All-reduces and all-to-alls of the layers of one stage."""
        model, plan, size = self.model, self.plan, self._num_bytes
        rows, rung = self.rows(shape), plan.rung(shape.mode)
        found = []
        if rung.tp > 1:
            cut = int(finished_rows < rows)  # layers that end with fewer rows
            found += [
                Collective(
                    kind=CollectiveKind.ALL_REDUCE,
                    ranks=rung.tp,
                    num_bytes=each * model.hidden_size * size,
                    count=2.0 * times,
                )
                for each, times in ((rows, layers - cut), (finished_rows, cut))
                if each and times
            ]
        if rung.sp > 1:
            # KV heads are repeated in the send buffer where there are fewer than ranks.
            kv_heads = model.kv_heads_per_rank(plan) * rung.sp
            q_width = model.q_size // rung.tp
            found += [
                Collective(
                    kind=CollectiveKind.ALL_TO_ALL,
                    ranks=rung.sp,
                    num_bytes=rows * width * size,
                    count=float(layers),
                )
                for width in (q_width + 2 * kv_heads * model.head_dim, q_width)
            ]
        return found

    def _edge_collectives(self, shape: StepShape, stage: int) -> list[Collective]:
        """The embedding's reduction, the hand-over between stages, and the tail."""
        model, plan, size = self.model, self.plan, self._num_bytes
        row_bytes = model.hidden_size * size
        rows, found = self.rows(shape), []
        group = plan.rung(shape.mode).tp
        if stage == 0 and group > 1:
            found.append(
                Collective(kind=CollectiveKind.ALL_REDUCE, ranks=group, num_bytes=rows * row_bytes)
            )
        if plan.pp > 1 and stage > 0:
            is_split = shape.mode != BASE and group > 1
            sent = rows / group if is_split else rows
            found.append(Collective(kind=CollectiveKind.SEND, ranks=2, num_bytes=sent * row_bytes))
            if is_split:
                found.append(
                    Collective(
                        kind=CollectiveKind.ALL_GATHER,
                        ranks=group,
                        num_bytes=sent * row_bytes,
                    )
                )
        if stage == plan.pp - 1 and plan.stage_size > 1:
            found += self._tail_collectives(shape, row_bytes)
        return found

    def _tail_collectives(self, shape: StepShape, row_bytes: int) -> list[Collective]:
        """Rows that need logits reach every slice, and each rank's share of the logits reaches the
        ranks that sample."""
        slices, sampled = self.plan.rung(shape.mode).sp, shape.num_sampled
        found = []
        if slices > 1:
            found.append(
                Collective(
                    kind=CollectiveKind.ALL_GATHER,
                    ranks=slices,
                    num_bytes=-(-sampled // slices) * row_bytes,
                )
            )
        return [*found, *self._logits_collectives(sampled)]

    def _logits_collectives(self, sampled: int) -> list[Collective]:
        """Logits to where rows are sampled, and ids back unless that is everywhere."""
        ranks, gather = self.plan.stage_size, CollectiveKind.ALL_GATHER
        logits_bytes = float(sampled * self.head.n * self._num_bytes)
        match self.exchange:
            case LogitsExchange.GATHER:
                return [Collective(kind=gather, ranks=ranks, num_bytes=logits_bytes)]
            case LogitsExchange.LARGEST:
                return [Collective(kind=gather, ranks=ranks, num_bytes=16.0 * sampled)]
            case LogitsExchange.ROWS:
                rows = -(-sampled // ranks)
                padded_bytes = logits_bytes * rows * ranks / max(1, sampled)
                return [
                    Collective(kind=CollectiveKind.ALL_TO_ALL, ranks=ranks, num_bytes=padded_bytes),
                    Collective(kind=gather, ranks=ranks, num_bytes=8.0 * rows),
                ]


def layer_shapes(model: ModelConfig, degree: int) -> LayerShapes:
    """The products of one layer when its weights are cut into ``degree`` tensor shards."""
    hidden, head_dim = model.hidden_size, model.head_dim
    q_width = model.q_size // degree
    kv_width = _kv_heads_of_shard(model.num_kv_heads, degree) * head_dim
    ffn = model.ffn_size // degree
    return LayerShapes(
        qkv=GemmShape(n=q_width + 2 * kv_width, k=hidden),
        o=GemmShape(n=hidden, k=q_width),
        gate_up=GemmShape(n=2 * ffn, k=hidden),
        down=GemmShape(n=hidden, k=ffn),
    )


def _kv_heads_of_shard(kv_heads: int, degree: int) -> int:
    """The most KV heads that one of ``degree`` shards needs; one head may serve several of them."""
    ends = ((-(-(i + 1) * kv_heads // degree), i * kv_heads // degree) for i in range(degree))
    return max(stop - start for stop, start in ends)


MODEL_SIZES = (
    "num_layers",
    "hidden_size",
    "ffn_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
)


def model_sizes(model: ModelConfig) -> dict[str, Any]:
    """The sizes of a model that operator shapes depend on."""
    return {name: getattr(model, name) for name in MODEL_SIZES}
