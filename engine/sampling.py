"""Chooses the next token of every sampled row: greedy, temperature, top-k, top-p.

Random rows use the Gumbel-max rule (Gumbel 1954; Maddison et al., arXiv 1411.0030): the token
with the largest ``logit / temperature + g``, where g is a Gumbel number of that very token,
counted by (seed, choice, output position, token id). Against inverting a sorted cumulative sum
with one uniform number, this is robust to the last bits in which plans, modes and batches differ:
a difference of e in the logits changes the outcome with probability of about e, while in a sorted
sum two tokens of nearly equal probability may swap places, and with them everything between. Nor
does it need the softmax of the whole row.

Ties at the border of top-k or top-p stay in, so the kept set does not depend on their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.philox import gumbel_at, gumbel_rows
from engine.steps import Float32Array, Int32Array, StepPlan, UInt64Array, float32, int32, uint64

# Below this share of the vocabulary, noise is drawn for the kept tokens only.
FEW_KEPT_SHARE = 1 / 16
# Borders are looked for among this many best tokens before the whole vocabulary is sorted, which
# takes 12 ms for a row of 128,256.
FIRST_RANKED = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """Sampling values of R rows. Empty arrays mean greedy rows."""

    temperatures: Float32Array
    top_ks: Int32Array
    top_ps: Float32Array
    seeds: UInt64Array
    positions: Int32Array

    @classmethod
    def of_step(cls, step: StepPlan) -> SamplingRows:
        return cls(
            temperatures=float32(step.temperatures),
            top_ks=int32(step.top_ks),
            top_ps=float32(step.top_ps),
            seeds=uint64(step.seeds),
            positions=int32(step.positions),
        )

    @property
    def random_rows(self) -> Int32Array:
        """Rows that draw, ascending."""
        return np.flatnonzero(self.temperatures > 0).astype(np.int32)

    def take(self, rows: Int32Array) -> SamplingRows:
        """The same values of some rows."""
        return SamplingRows(
            temperatures=self.temperatures[rows],
            top_ks=self.top_ks[rows],
            top_ps=self.top_ps[rows],
            seeds=self.seeds[rows],
            positions=self.positions[rows],
        )


def sample(logits: Tensor, values: SamplingRows) -> Tensor:
    """The next token of each row of ``logits[R, V]`` (-inf never chosen) -> ids i8[R].

    A row's answer depends on its logits and its own sampling values only.
    """
    ids = logits.argmax(dim=-1)
    drawing = values.random_rows
    if not len(drawing):
        return ids
    rows = torch.from_numpy(drawing).to(logits.device)
    ids[rows] = _draw(logits[rows], values.take(drawing))
    return ids


def _draw(logits: Tensor, values: SamplingRows) -> Tensor:
    """Gumbel-max over the tokens that top-k and top-p keep; every row has temperature > 0."""
    scores = logits.double()
    scores -= scores.amax(dim=-1, keepdim=True)
    scores /= torch.from_numpy(values.temperatures.astype(np.float64)).to(scores.device)[:, None]
    vocab_size = scores.shape[1]
    is_limited = (values.top_ks > 0) | (values.top_ps < 1)
    if is_limited.any():
        limited = np.flatnonzero(is_limited).astype(np.int32)
        rows = torch.from_numpy(limited).to(scores.device)
        scores[rows] = _limited(scores[rows], values.take(limited))
    most_kept = int(scores.isfinite().sum(dim=-1).max())
    if most_kept <= vocab_size * FEW_KEPT_SHARE:
        top = scores.topk(most_kept, dim=-1)
        noise = gumbel_at(seeds=values.seeds, positions=values.positions, lanes=top.indices)
        best = (top.values + noise).argmax(dim=-1, keepdim=True)
        return top.indices.gather(1, best).squeeze(1)
    noise = gumbel_rows(
        seeds=values.seeds,
        positions=values.positions,
        num_lanes=vocab_size,
        device=scores.device,
    )
    return (scores + noise).argmax(dim=-1)


def _limited(scores: Tensor, values: SamplingRows) -> Tensor:
    """``scores`` with everything below each row's top-k and then top-p border at -inf."""
    vocab_size = scores.shape[1]
    top_ks = np.where(values.top_ks > 0, np.minimum(values.top_ks, vocab_size), vocab_size)
    is_deep = (values.top_ks == 0) | (values.top_ks > FIRST_RANKED)
    width = min(vocab_size, FIRST_RANKED) if is_deep.any() else int(top_ks.max())
    limits, top_ps = (
        torch.from_numpy(array).to(scores.device)[:, None]
        for array in (top_ks.astype(np.int64), values.top_ps.astype(np.float64))
    )
    border = _border(scores, limits, top_ps, width)
    if border is None:
        border = _border(scores, limits, top_ps, vocab_size)
    assert border is not None, "a ranking of the whole vocabulary holds every border"
    return scores.masked_fill(scores < border, -torch.inf)


def _border(scores: Tensor, limits: Tensor, top_ps: Tensor, width: int) -> Tensor | None:
    """Smallest score [R, 1] that each row keeps, found among its ``width`` best; None if some
    row's border lies deeper.
    """
    ranked = scores.topk(width, dim=-1).values
    is_top = torch.arange(width, device=scores.device) < limits
    ranked_sum = ranked.exp().masked_fill_(~is_top, 0.0).sum(dim=-1, keepdim=True)
    is_whole = limits >= scores.shape[1]
    total = torch.where(is_whole, scores.exp().sum(dim=-1, keepdim=True), ranked_sum)
    shares = ranked.exp() / total
    before = shares.cumsum(dim=-1) - shares
    is_reached = before[:, -1:] + shares[:, -1:] >= top_ps
    is_found = torch.where(is_whole, is_reached, limits <= width)
    if width < scores.shape[1] and not is_found.all():
        return None
    num_kept = (is_top & (before < top_ps)).sum(dim=-1, keepdim=True).clamp(min=1)
    return ranked.gather(1, num_kept - 1)
