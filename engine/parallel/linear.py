"""Split matrices: one resident base shard each, the shard of every other mode a view of it.

Every class holds the views side by side and picks by mode; ``tests/engine/parallel`` checks
that no second copy exists. Shapes follow the checkpoints: ``[out_features, in_features]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.parallel.few_rows import PieceFields
from engine.parallel.mesh import RankGroups
from engine.parallel.products import PackedInputs, PackedOutputs, split_inputs, split_outputs
from engine.parallel.shards import Ranges, Weight
from engine.spec.modes import BASE, Mode


class ColumnParallelLinear:
    """Output features split. ``weight`` [rows of the base shard, d]; a mode's shard is ``rows`` of
    it. No communication. With ``may_pack`` the weight is packed where this machine can.
    """

    def __init__(
        self, weight: Weight, bias: Tensor | None, *, rows: Ranges, may_pack: bool = False
    ) -> None:
        self._product = split_outputs(weight, bias, rows, may_pack=may_pack)
        self.tensors = self._product.tensors

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        """``x[n, d]`` -> ``[n, rows of the mode's shard]``."""
        return self._product(x, mode)

    def find_pieces(self, mode: Mode) -> list[PieceFields] | None:
        """See :meth:`engine.parallel.products.PackedOutputs.find_pieces`."""
        product = self._product
        return product.find_pieces(mode) if isinstance(product, PackedOutputs) else None


class RowParallelLinear:
    """Input features split, so products are partial sums. ``weight`` [d, columns of the base
    shard]; a mode's shard is ``columns`` of it. ``bias`` [d] is whole on every rank, and added once
    to the whole sum.
    """

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        columns: Ranges,
        groups: RankGroups,
        may_pack: bool = False,
    ) -> None:
        self._product = split_inputs(weight, columns, may_pack=may_pack)
        self.tensors = self._product.tensors if bias is None else [*self._product.tensors, bias]
        self._bias = bias
        self._groups = groups

    def __call__(self, x: Tensor, mode: Mode) -> Tensor:
        """``x[n, columns of the mode's shard]`` -> the whole sum ``[n, d]`` on every rank."""
        group = self._groups.tensor(mode)
        if group.size == 1:
            return self._product(x, mode, self._bias)
        total = group.all_reduce(self._product(x, mode))
        return total if self._bias is None else total + self._bias

    def find_pieces(self, mode: Mode, group: Communicator) -> list[PieceFields] | None:
        """See :meth:`engine.parallel.products.PackedInputs.find_pieces`; ``group``: the mode's."""
        if not isinstance(self._product, PackedInputs):
            return None
        return self._product.find_pieces(mode, None if group.size > 1 else self._bias)

    def late_bias(self, group: Communicator) -> Tensor | None:
        """The bias ``[d]`` that is added after the sum over ``group``."""
        return self._bias if group.size > 1 else None


class VocabParallelEmbedding:
    """Rows of the (padded) vocabulary split. ``weight`` [padded vocabulary / tp, d] begins at row
    ``start`` of the whole; a mode's shard is ``rows`` of it, and ``block`` are those of this rank
    alone.
    """

    def __init__(
        self, weight: Tensor, *, start: int, rows: Ranges, block: range, groups: RankGroups
    ) -> None:
        self.tensors = [weight]
        self.block_view = weight[_slice(block)]
        self._views = {
            mode: (weight[_slice(kept)], start + kept.start) for mode, kept in rows.items()
        }
        self._groups = groups

    def __call__(self, token_ids: Tensor, mode: Mode) -> Tensor:
        """Token ids i8[n] -> ``[n, d]`` on every rank of the mode's tensor group."""
        weight, start = self._views[mode]
        group = self._groups.tensor(mode)
        if group.size == 1:
            return F.embedding(token_ids, weight)
        local = token_ids - start
        is_mine = (local >= 0) & (local < weight.shape[0])
        rows = F.embedding(local.mul_(is_mine), weight).mul_(is_mine.unsqueeze(1))
        return group.all_reduce(rows)


class VocabParallelHead:
    """The head over all sp*tp ranks of a stage, the same in every mode.

    ``weight`` [padded vocabulary / (sp*tp), d] is this rank's shard, of which ``num_valid`` rows
    are tokens; the rest pads the vocabulary and gives -inf. When tied, it is the embedding's
    ``block_view``, whose rows are looked up too and so are never packed, or a quantised copy.
    """

    def __init__(
        self,
        weight: Weight,
        *,
        num_valid: int,
        vocab_size: int,
        groups: RankGroups,
        may_pack: bool = False,
    ) -> None:
        whole = {BASE: range(weight.shape[0])}
        self._product = split_outputs(weight, None, whole, may_pack=may_pack)
        self.tensors = self._product.tensors
        self._num_valid = num_valid
        self._vocab_size = vocab_size
        self._group = groups.shift

    def shard(self, x: Tensor) -> Tensor:
        """``x[rows, d]`` -> this rank's logits ``[rows, padded vocabulary / (sp*tp)]``."""
        shard = self._product(x, BASE)
        if self._num_valid < shard.shape[1]:
            shard[:, self._num_valid :] = -torch.inf
        return shard

    def gather(self, shard: Tensor) -> Tensor:
        """Every rank's logits -> ``[rows, vocab_size]`` on every rank of the stage."""
        if self._group.size == 1:
            return shard[:, : self._vocab_size]
        gathered = self._group.all_gather(shard)
        return gathered.transpose(0, 1).flatten(1)[:, : self._vocab_size]


def _slice(kept: range) -> slice:
    return slice(kept.start, kept.stop)
