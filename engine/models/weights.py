"""One rank's weights: base shards in shift-block order, read slice by slice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.models.loader import Checkpoint
from engine.parallel import int8
from engine.parallel.few_rows import can_be_few
from engine.parallel.heads import HeadLayout, Part, block_range, head_layout
from engine.parallel.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from engine.parallel.mesh import RankGroups
from engine.parallel.packed import place_and_bytes
from engine.parallel.quantised import join_rows, quantise
from engine.parallel.shards import Ranges, Weight
from engine.spec.model import ModelConfig
from engine.spec.plan import (
    ParallelPlan,
    RankCoords,
    padded_vocab_size,
    rank_coords,
    stage_layers,
)
from engine.spec.quantisation import WeightFormat


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer's shards. ``qk_norm`` [q + kv heads, hd]: each head's norm weight."""

    input_norm: Tensor
    qkv: ColumnParallelLinear
    qk_norm: Tensor | None
    o: RowParallelLinear
    post_norm: Tensor
    gate_up: ColumnParallelLinear
    down: RowParallelLinear

    def tensors(self) -> list[Tensor]:
        norms = [self.input_norm, self.post_norm]
        if self.qk_norm is not None:
            norms.append(self.qk_norm)
        linears = (self.qkv, self.o, self.gate_up, self.down)
        return norms + [tensor for linear in linears for tensor in linear.tensors]


@dataclass(frozen=True, kw_only=True)
class StageWeights:
    """One rank's part of the model; ends of the pipeline hold embedding, final norm and head."""

    layout: HeadLayout
    embedding: VocabParallelEmbedding | None
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor | None
    head: VocabParallelHead | None

    @property
    def products(self) -> str:
        """What multiplies with the layers, for people."""
        tensors = [
            tensor
            for layer in self.layers
            for tensor in layer.tensors()
            if tensor.dim() > 1 and tensor.shape[0] > 1  # no scales
        ]
        num_packed = sum(tensor.is_mkldnn for tensor in tensors)
        num_int8 = sum(tensor.dtype == torch.int8 for tensor in tensors)
        parts = []
        if num_int8:
            parts.append(f"int8 ({_share(num_int8, tensors)}), {int8.describe()}")
        if num_packed:
            few = ", few rows compiled" if can_be_few(tensors[0].dtype) else ""
            parts.append(f"weights packed for oneDNN ({_share(num_packed, tensors)}){few}")
        return "; ".join(parts) or "plain weights"

    @property
    def places(self) -> dict[int, int]:
        """Where weights lie: the bytes of every storage once, by its address."""
        tensors = [tensor for layer in self.layers for tensor in layer.tensors()]
        if self.embedding is not None:
            tensors += self.embedding.tensors
        if self.final_norm is not None:
            tensors.append(self.final_norm)
        if self.head is not None:
            tensors += self.head.tensors
        return dict(place_and_bytes(tensor) for tensor in tensors)

    @property
    def num_bytes(self) -> int:
        """Resident bytes: every storage counted once, however many views it has."""
        return sum(self.places.values())


def _share(number: int, tensors: list[Tensor]) -> str:
    return "all" if number == len(tensors) else f"{number} of {len(tensors)} pieces"


def load_stage(
    *,
    model_dir: Path,
    model: ModelConfig,
    plan: ParallelPlan,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    groups: RankGroups,
) -> StageWeights:
    """Load the shards of ``rank``.

    Raises:
        CheckpointError: see :class:`engine.models.loader.Checkpoint`.
    """
    reader = _ShardReader(
        checkpoint=Checkpoint(model_dir, model, dtype=dtype),
        model=model,
        plan=plan,
        coords=rank_coords(plan, rank),
        device=device,
        groups=groups,
    )
    return reader.stage()


class _ShardReader:
    """Cuts the shards of one rank out of a checkpoint."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        model: ModelConfig,
        plan: ParallelPlan,
        coords: RankCoords,
        device: torch.device,
        groups: RankGroups,
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._plan = plan
        self._coords = coords
        self._device = device
        self._groups = groups
        self._layout = head_layout(model, plan, coords)
        self._names = model.family.names

    def stage(self) -> StageWeights:
        is_first, is_last = self._coords.p == 0, self._coords.p == self._plan.pp - 1
        layers = stage_layers(self._model.num_layers, self._plan.pp)[self._coords.p]
        embedding = self._embedding() if is_first else None
        return StageWeights(
            layout=self._layout,
            embedding=embedding,
            layers=tuple(self._layer(layer) for layer in layers),
            final_norm=self._norm(self._names.final_norm) if is_last else None,
            head=self._head(embedding) if is_last else None,
        )

    def _layer(self, layer: int) -> LayerWeights:
        names = self._names
        name = partial(names.in_layer, layer)
        return LayerWeights(
            input_norm=self._norm(name(names.input_norm)),
            qkv=self._qkv(layer),
            qk_norm=self._qk_norm(layer) if self._model.qk_norm else None,
            o=self._row_parallel(layer, names.o, self._model.q_size, has_bias=self._model.o_bias),
            post_norm=self._norm(name(names.post_norm)),
            gate_up=self._gate_up(layer),
            down=self._row_parallel(
                layer, names.down, self._model.ffn_size, has_bias=self._model.mlp_bias
            ),
        )

    def _norm(self, module: str) -> Tensor:
        weight = self._checkpoint.read(f"{module}.weight", range(self._model.hidden_size))
        return weight.clone().to(self._device)

    def _qkv(self, layer: int) -> ColumnParallelLinear:
        layout, head_dim = self._layout, self._model.head_dim
        module_of = {Part.Q: self._names.q, Part.K: self._names.k, Part.V: self._names.v}
        parts = [
            (
                self._names.in_layer(layer, module_of[run.part]),
                range(run.start * head_dim, run.stop * head_dim),
            )
            for run in layout.runs()
        ]
        return self._fused(
            parts,
            has_bias=self._model.qkv_bias,
            rows={
                mode: range(view.start * head_dim, view.stop * head_dim)
                for mode, view in layout.views.items()
            },
        )

    def _qk_norm(self, layer: int) -> Tensor:
        dims = range(self._model.head_dim)
        q_norm, k_norm = (
            self._checkpoint.read(f"{self._names.in_layer(layer, module)}.weight", dims)
            for module in (self._names.q_norm, self._names.k_norm)
        )
        heads = (
            q_norm.expand(self._layout.num_q, -1),
            k_norm.expand(self._layout.num_kv, -1),
        )
        return torch.cat(heads).to(self._device)

    def _gate_up(self, layer: int) -> ColumnParallelLinear:
        block = self._model.ffn_size // self._plan.stage_size
        first = self._coords.t * self._plan.sp * block
        starts = range(first, first + self._plan.sp * block, block)
        parts = [
            (self._names.in_layer(layer, module), range(start, start + block))
            for start in starts
            for module in (self._names.gate, self._names.up)
        ]
        rows = self._ranges(2 * block)
        return self._fused(parts, has_bias=self._model.mlp_bias, rows=rows)

    def _fused(
        self, parts: list[tuple[str, range]], *, has_bias: bool, rows: Ranges
    ) -> ColumnParallelLinear:
        """Rows of modules under each other, quantised where all of them are."""
        names = [f"{module}.weight" for module, _ in parts]
        bias = None
        if has_bias:
            found = [self._checkpoint.read(f"{module}.bias", kept) for module, kept in parts]
            bias = torch.cat(found).to(self._device)
        return ColumnParallelLinear(
            self._joined([(name, kept) for name, (_, kept) in zip(names, parts, strict=True)]),
            bias,
            rows=rows,
            may_pack=True,
        )

    def _joined(self, parts: list[tuple[str, range]]) -> Weight:
        hidden = self._model.hidden_size
        if self._keeps(*(name for name, _ in parts)):
            columns = range(hidden)
            found = (self._checkpoint.read_quantised(*part, columns) for part in parts)
            return join_rows(tuple(found)).to(self._device)
        weight = self._empty(sum(len(rows) for _, rows in parts), hidden)
        row = 0
        for name, rows in parts:
            weight[row : row + len(rows)] = self._checkpoint.read(name, rows)
            row += len(rows)
        return weight.to(self._device)

    def _keeps(self, *names: str) -> bool:
        """Whether a matrix made of these tensors stays quantised on this rank."""
        said = self._model.quantisation
        is_kept = said is not None and said.is_kept
        return is_kept and all(self._checkpoint.is_quantised(name) for name in names)

    def _row_parallel(
        self, layer: int, module: str, num_columns: int, *, has_bias: bool
    ) -> RowParallelLinear:
        base = num_columns // self._plan.tp
        block = base // self._plan.sp
        columns = range(self._coords.t * base, (self._coords.t + 1) * base)
        rows = range(self._model.hidden_size)
        whole_name = self._names.in_layer(layer, module)
        name = f"{whole_name}.weight"
        weight: Weight
        if self._keeps(name):
            cut = self._model.column_cuts(self._plan).get(module, 0)
            found = self._checkpoint.read_quantised(name, rows, columns, cut=cut)
            weight = join_rows((found,)).to(self._device)
        else:
            part = self._checkpoint.read(name, rows, columns)
            weight = part.contiguous().clone().to(self._device)
        bias = self._checkpoint.read(f"{whole_name}.bias", rows) if has_bias else None
        return RowParallelLinear(
            weight,
            None if bias is None else bias.clone().to(self._device),
            columns=self._ranges(block),
            groups=self._groups,
            may_pack=True,
        )

    def _ranges(self, width: int) -> Ranges:
        """The part of a base shard for each mode, where a block of it is ``width`` wide."""
        blocks = {mode: block_range(self._plan, mode, self._coords) for mode in self._plan.modes}
        return {
            mode: range(found.start * width, found.stop * width) for mode, found in blocks.items()
        }

    @property
    def _vocab_block(self) -> int:
        """Rows of the padded vocabulary per rank of the stage."""
        size = self._plan.stage_size
        return padded_vocab_size(self._model.vocab_size, size) // size

    def _embedding(self) -> VocabParallelEmbedding:
        block, sp = self._vocab_block, self._plan.sp
        start = self._coords.t * sp * block
        mine = self._coords.s * block
        return VocabParallelEmbedding(
            self._vocab_rows(self._names.embedding, range(start, start + sp * block)),
            start=start,
            rows=self._ranges(block),
            block=range(mine, mine + block),
            groups=self._groups,
        )

    def _head(self, embedding: VocabParallelEmbedding | None) -> VocabParallelHead:
        """The head's shard; tied to the embedding of the same stage it is a view of it."""
        start = self._coords.shift_index(self._plan) * self._vocab_block
        rows = range(start, start + self._vocab_block)
        said = self._model.quantisation
        view = None
        weight: Weight
        if said is not None and said.has_head:
            weight = self._quantised_head(rows, is_kept=said.is_kept)
        elif self._checkpoint.is_tied and embedding is not None:
            weight = view = embedding.block_view
        else:
            weight = self._vocab_rows(self._names.head, rows)
        return VocabParallelHead(
            weight,
            num_valid=len(range(*slice(rows.start, rows.stop).indices(self._model.vocab_size))),
            vocab_size=self._model.vocab_size,
            groups=self._groups,
            may_pack=view is None,
        )

    def _quantised_head(self, rows: range, *, is_kept: bool) -> Weight:
        """Rows of the padded vocabulary, quantised, or the numbers they then stand for."""
        name, columns = f"{self._names.head}.weight", range(self._model.hidden_size)
        stop = min(rows.stop, self._model.vocab_size)
        parts = []
        if rows.start < stop:
            parts.append(self._checkpoint.read_quantised(name, range(rows.start, stop), columns))
        if padding := len(rows) - len(range(rows.start, stop)):
            parts.append(quantise(torch.zeros(padding, len(columns)), WeightFormat.INT8))
        # Its rows are few, and what is rounded here is rounded in the logits.
        head = replace(join_rows(parts), rounds_rows=False).to(self._device)
        return head if is_kept else head.plain(self._checkpoint.dtype)

    def _vocab_rows(self, module: str, rows: range) -> Tensor:
        """Rows of the padded vocabulary; those past its end are zero."""
        stop = min(rows.stop, self._model.vocab_size)
        weight = self._empty(len(rows), self._model.hidden_size)
        weight.zero_()
        if rows.start < stop:
            found = self._checkpoint.read(f"{module}.weight", range(rows.start, stop))
            weight[: stop - rows.start] = found
        return weight.to(self._device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._checkpoint.dtype)
