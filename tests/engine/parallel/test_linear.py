"""Shards are views: no product in any mode reads a second copy of a weight."""

from __future__ import annotations

import torch

from engine.parallel.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from engine.parallel.mesh import solo_groups
from engine.spec.modes import BASE, ENDS, SHIFT

GROUPS = solo_groups()
RANGES = {BASE: range(6), SHIFT: range(2, 4)}


def test_a_modes_shard_of_a_column_split_is_a_row_range_of_the_base_shard() -> None:
    weight, bias, x = torch.randn(6, 4), torch.randn(6), torch.randn(3, 4)
    linear = ColumnParallelLinear(weight, bias, rows=RANGES)
    base = linear(x, BASE)
    torch.testing.assert_close(base, x @ weight.T + bias)
    torch.testing.assert_close(linear(x, SHIFT), base[:, 2:4])
    weight.zero_()
    bias.zero_()
    assert not linear(x, SHIFT).any()


def test_a_modes_shard_of_a_row_split_is_a_column_range_of_the_base_shard() -> None:
    weight, x = torch.randn(4, 6), torch.randn(3, 6)
    linear = RowParallelLinear(weight, columns=RANGES, groups=GROUPS)
    torch.testing.assert_close(linear(x, BASE), x @ weight.T)
    torch.testing.assert_close(linear(x[:, 2:4], SHIFT), x[:, 2:4] @ weight[:, 2:4].T)
    weight.zero_()
    assert not linear(x[:, 2:4].contiguous(), SHIFT).any()


def test_a_tied_head_reads_the_embedding_and_padding_never_wins() -> None:
    weight = torch.randn(6, 4)
    whole = dict.fromkeys(ENDS, range(6))
    embedding = VocabParallelEmbedding(weight, start=0, rows=whole, block=range(6), groups=GROUPS)
    head = VocabParallelHead(embedding.block_view, num_valid=5, vocab_size=5, groups=GROUPS)
    ids = torch.tensor([4, 0])
    assert torch.equal(embedding(ids, BASE), weight[ids])
    assert torch.equal(embedding(ids, SHIFT), weight[ids])
    x = torch.randn(2, 4)
    torch.testing.assert_close(head.gather(head.shard(x)), x @ weight[:5].T)
    assert head.tensors[0].untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_logits_of_padded_rows_are_minus_infinity_where_they_are_kept() -> None:
    head = VocabParallelHead(torch.randn(4, 3), num_valid=2, vocab_size=4, groups=GROUPS)
    logits = head.gather(head.shard(torch.randn(2, 3)))
    assert logits[:, :2].isfinite().all()
    assert (logits[:, 2:] == -torch.inf).all()
