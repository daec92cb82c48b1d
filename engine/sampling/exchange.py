"""Rows of logits whose vocabulary is cut over ranks, brought together: some rows to each rank.

::

    my columns of all rows            all columns of my rows          everybody's answers
    [R, v/t]   --- all-to-all --->    [R/t, v]      all-gather        [R, C]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.parallel.communicator import Communicator


@dataclass(frozen=True, kw_only=True)
class OwnRows:
    """Rows ``first`` to ``end`` of ``num_rows`` are this rank's, perhaps none; ``blocks``
    [t, per_rank, v/t] hold shard j of theirs in block j, then padding.
    """

    blocks: Tensor
    first: int
    end: int
    num_rows: int


def exchange_rows(shard: Tensor, group: Communicator) -> OwnRows:
    """From this rank's columns ``shard[R, v/t]`` of R > 0 rows to all columns of its own rows.

    Raises:
        RankError: a peer did not come to the exchange.
    """
    num_rows, size = len(shard), group.size
    per_rank = -(-num_rows // size)
    # Any numbers will do for padding: nobody reads them.
    padded = _with_rows(shard, per_rank * size)
    first = min(group.rank * per_rank, num_rows)
    return OwnRows(
        blocks=group.all_to_all(padded.contiguous().view(size, per_rank, -1)),
        first=first,
        end=min(first + per_rank, num_rows),
        num_rows=num_rows,
    )


def gather_rows(answers: Tensor, own: OwnRows, group: Communicator) -> Tensor:
    """Each rank's ``answers[end - first, C]`` of its own rows -> all ranks' ``[num_rows, C]``.

    Raises:
        RankError: a peer did not come to the exchange.
    """
    padded = _with_rows(answers, own.blocks.shape[1])
    return group.all_gather(padded).flatten(0, 1)[: own.num_rows]


def whole_rows(blocks: Tensor, vocab_size: int) -> Tensor:
    """``blocks[t, R, v/t]`` -> ``[R, vocab_size]``: a row's shards side by side, in group order,
    are its logits of the whole vocabulary.
    """
    return blocks.transpose(0, 1).flatten(1)[:, :vocab_size]


def _with_rows(rows: Tensor, count: int) -> Tensor:
    """``rows`` as the first ones of ``count``, the others zero."""
    if len(rows) == count:
        return rows
    padded = rows.new_zeros((count, rows.shape[1]))
    padded[: len(rows)] = rows
    return padded
