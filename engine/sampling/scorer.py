"""Log probabilities of the prompts' own tokens, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.sampling.exchange import exchange_rows, gather_rows, whole_rows
from engine.sampling.logprobs import RowLogprobs, row_logprobs

# Of one slice, on each rank. A slice is in float64 for a moment: 8 MB per rank's row and 1 M ids.
ROWS_PER_RANK = 16


def score_rows(
    rows: Tensor,
    ids: Tensor,
    *,
    num_best: int,
    vocab_size: int,
    logit_shard: Callable[[Tensor], Tensor],
    group: Communicator,
) -> RowLogprobs:
    """Log probabilities of ``ids`` i8[Q] and of the ``num_best`` best ids at ``rows[Q, d]``, on
    every rank; Q > 0.

    ``logit_shard`` turns rows into this rank's columns of their logits. All ranks of ``group`` call
    together. A prompt has thousands of rows and a vocabulary a hundred thousand ids, so that only
    a slice of the logits exists at any time.

    Raises:
        RankError: a peer did not come to the exchange.
    """
    at_once = ROWS_PER_RANK * group.size
    found: list[RowLogprobs] = []
    for begin in range(0, len(rows), at_once):
        own = exchange_rows(logit_shard(rows[begin : begin + at_once]), group)
        logits = whole_rows(own.blocks, vocab_size)[: own.end - own.first]
        targets = ids[begin + own.first : begin + own.end]
        mine = row_logprobs(logits, targets, min(num_best, vocab_size))
        found.append(RowLogprobs.unpacked(gather_rows(mine.packed(), own, group)))
    return RowLogprobs.joined(found)
