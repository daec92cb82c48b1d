"""Log probabilities of sampled tokens under the model's own logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sampling.rules import ordinary_rows


@dataclass(frozen=True, kw_only=True)
class RowLogprobs:
    """Of R rows: ``ids`` i4[R, 1+K] are the chosen token and the K best (best first),
    ``logprobs`` f4[R, 1+K] theirs, ``ranks`` i4[R] the chosen one's place (1 = most likely).

    Rows that asked for nothing hold id -1, nan and rank 0.
    """

    ids: Tensor
    logprobs: Tensor
    ranks: Tensor

    @property
    def num_best(self) -> int:
        """K."""
        return self.ids.shape[1] - 1

    @classmethod
    def empty(cls, num_rows: int, num_best: int, device: torch.device) -> RowLogprobs:
        """Rows that asked for nothing."""
        shape = (num_rows, 1 + num_best)
        return cls(
            ids=torch.full(shape, -1, dtype=torch.int32, device=device),
            logprobs=torch.full(shape, torch.nan, dtype=torch.float32, device=device),
            ranks=torch.zeros(num_rows, dtype=torch.int32, device=device),
        )

    @classmethod
    def joined(cls, parts: list[RowLogprobs]) -> RowLogprobs:
        """The rows of all ``parts``, in order."""
        return cls(
            ids=torch.cat([part.ids for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            ranks=torch.cat([part.ranks for part in parts]),
        )

    def put(self, rows: Tensor, found: RowLogprobs) -> None:
        """Write ``found`` into ``rows`` i8 of these."""
        self.ids[rows] = found.ids
        self.logprobs[rows] = found.logprobs
        self.ranks[rows] = found.ranks

    def packed(self) -> Tensor:
        """All three as one contiguous i4[R, 3+2K]."""
        bits = self.logprobs.view(torch.int32)
        return torch.cat([self.ids, bits, self.ranks[:, None]], dim=1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> RowLogprobs:
        """Inverse of :meth:`packed`."""
        width = (packed.shape[1] - 1) // 2
        return cls(
            ids=packed[:, :width],
            logprobs=packed[:, width : 2 * width].contiguous().view(torch.float32),
            ranks=packed[:, -1],
        )


def row_logprobs(logits: Tensor, ids: Tensor, num_best: int) -> RowLogprobs:
    """Log probabilities of each row of ``logits[R, V]``: of ``ids`` i8[R] and the K best.

    K is at most V. Of equal logits the lower id counts as the better one. Rows are read as they
    are sampled (:func:`engine.sampling.rules.ordinary_rows`), so no number is NaN.
    """
    chosen, logits = ids[:, None], ordinary_rows(logits)
    logprobs = logits.double().log_softmax(dim=-1)
    told = torch.cat([chosen, _best_ids(logits, num_best)], dim=1)
    mine = logits.gather(1, chosen)
    is_before = torch.arange(logits.shape[1], device=logits.device) < chosen
    is_better = (logits > mine) | ((logits == mine) & is_before)
    return RowLogprobs(
        ids=told.int(),
        logprobs=logprobs.gather(1, told).float(),
        ranks=is_better.sum(dim=-1, dtype=torch.int32) + 1,
    )


def _best_ids(logits: Tensor, num_best: int) -> Tensor:
    """Ids i8[R, K] of the largest logits, best first.

    Narrow formats often hold equal logits, and ``topk`` returns any of them. There a 64-bit key
    decides: its high half orders as the floats do, its low half puts lower ids first.
    """
    if logits.dtype == torch.float64:
        return logits.topk(num_best, dim=-1).indices
    bits = (logits.float() + 0.0).view(torch.int32)  # minus zero becomes zero
    # Negative floats ascend while their bits descend: flipping all bits but the sign mends that.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    ids = torch.arange(logits.shape[1], device=logits.device)
    # The complement of the id, because the largest key wins and the lowest id should.
    keys = (ordered << 32) | (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (keys.topk(num_best, dim=-1).values & 0xFFFFFFFF)
