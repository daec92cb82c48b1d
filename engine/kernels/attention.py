"""Attention over the paged cache, torch version.

Decode tokens of many sequences run as a few padded batches; each prefill chunk runs by itself.
Everything that depends on the step but not on the layer (which cache rows, which mask) is in the
:class:`AttentionPlan`, built once per step by ``engine.kernels.attention_plan``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.kv_cache import LayerCache


@dataclass(frozen=True, kw_only=True)
class DecodeBatch:
    """Sequences with one new token each, padded to one context length L.

    ``tokens``: their rows in the step, a slice where they are adjacent, else i8[S].
    ``cache_rows`` i8[S * kv_heads * L]: head rows of the cache, sequence by sequence, head by
    head. ``mask`` [S * kv_heads, 1, L]: 0 or -inf, added to scores; None where nothing is padded.
    """

    tokens: slice | Tensor
    num_seqs: int
    context_len: int
    cache_rows: Tensor
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """Rows ``start`` to ``stop`` of the step: new tokens of one sequence.

    ``cache_rows`` i8[kv_heads * L]: head rows of its whole context, new tokens included, and
    ``mask`` [stop - start, L] the causal mask, 0 or -inf; both None for a sequence's first chunk,
    which needs nothing from the cache.
    """

    start: int
    stop: int
    cache_rows: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The step's attention work; ``slots`` i8[n] is where new keys and values are written."""

    slots: Tensor
    decodes: tuple[DecodeBatch, ...]
    prefills: tuple[PrefillChunk, ...]


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, cache: LayerCache, plan: AttentionPlan
) -> Tensor:
    """Write the step's keys and values, then attend, each query head in its KV head's group.

    Args:
        queries: ``[n, q_heads, hd]``, rotated; q_heads is a multiple of kv_heads.
        keys: ``[n, kv_heads, hd]``, rotated.
        values: ``[n, kv_heads, hd]``.
        cache: this layer's cache; slots in ``plan`` are overwritten.
        plan: which rows belong to whom.

    Returns:
        ``[n, q_heads * hd]``. Softmax runs in float32, in float64 for float64 input.
    """
    cache.write(plan.slots, keys, values)
    if len(plan.decodes) == 1 and not plan.prefills and isinstance(plan.decodes[0].tokens, slice):
        return _decode(queries, cache, plan.decodes[0]).flatten(1)
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    for batch in plan.decodes:
        out[batch.tokens] = _decode(queries[batch.tokens], cache, batch)
    for chunk in plan.prefills:
        out[chunk.start : chunk.stop] = _prefill(queries, keys, values, cache, chunk)
    return out.flatten(1)


def _decode(queries: Tensor, cache: LayerCache, batch: DecodeBatch) -> Tensor:
    """``queries[S, q_heads, hd]`` against each one's own context -> the same shape."""
    num_kv, head_dim = cache.keys.shape[2:]
    keys, values = cache.gather(batch.cache_rows)
    grouped = queries.reshape(batch.num_seqs * num_kv, -1, head_dim)
    keys = keys.view(-1, batch.context_len, head_dim)
    values = values.view(-1, batch.context_len, head_dim)
    if _has_wide_scores(queries):
        scale, columns = head_dim**-0.5, keys.transpose(1, 2)
        if batch.mask is None:
            scores = torch.bmm(grouped, columns).mul_(scale)
        else:
            scores = torch.baddbmm(batch.mask, grouped, columns, alpha=scale)
        return torch.bmm(torch.softmax(scores, dim=-1), values).view_as(queries)
    mask = None if batch.mask is None else batch.mask.expand(-1, grouped.shape[1], -1)[None]
    return F.scaled_dot_product_attention(
        grouped[None], keys[None], values[None], attn_mask=mask
    ).reshape(queries.shape)


def _has_wide_scores(queries: Tensor) -> bool:
    """Whether scores lose nothing in the input's own dtype. On CPU two batched products are
    then 1.2 to 2 times faster than the fused kernel for single queries.
    """
    return queries.dtype in (torch.float32, torch.float64) and not queries.is_cuda


def _prefill(
    queries: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, chunk: PrefillChunk
) -> Tensor:
    """One sequence's new tokens ``[stop - start, q_heads, hd]``, causal."""
    rows = slice(chunk.start, chunk.stop)
    new = queries[rows].transpose(0, 1)
    if chunk.cache_rows is None:
        attended = F.scaled_dot_product_attention(
            new[None],
            keys[rows].transpose(0, 1)[None],
            values[rows].transpose(0, 1)[None],
            is_causal=True,
            enable_gqa=True,
        )
        return attended.squeeze(0).transpose(0, 1)
    num_kv, head_dim = cache.keys.shape[2:]
    context = [x.view(num_kv, 1, -1, head_dim) for x in cache.gather(chunk.cache_rows)]
    grouped = new.view(num_kv, -1, *new.shape[1:])
    # Fused kernels that take a mask cannot share KV heads. Views of stride 0 repeat the heads
    # without a copy.
    keys, values = (x.expand(-1, grouped.shape[1], -1, -1) for x in context)
    attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=chunk.mask)
    return attended.flatten(0, 1).transpose(0, 1)
