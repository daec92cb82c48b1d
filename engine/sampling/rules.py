"""Chooses the next token of every sampled row: greedy, temperature, min-p, top-k, top-p.

Random rows use the Gumbel-max rule (Gumbel 1954; Maddison et al., arXiv 1411.0030): the token
with the largest ``logit / temperature + g``, where g is a Gumbel number of that very token,
counted by (seed, choice, output position, token id). This is robust to the last bits in which
plans, modes and batches differ: a difference of e in the logits changes the chosen token with a
probability of about e. Inverting a sorted cumulative sum with one uniform number is not: two tokens
of nearly equal probability may swap places there, which shifts every token between them. Nor does
Gumbel-max need the softmax of the whole row.

Ties at the border of top-k or top-p stay in, so the kept set does not depend on their order.
Probability is summed in fixed point (:data:`WEIGHT_SCALE`), which gives the same sum in any
order: a row is answered alike, to the bit, alone and among others.

On CUDA :mod:`engine.sampling.triton_sampler` follows this rule in kernels that the host need not
wait for. A GPU's logarithms and exponentials differ from numpy's in the last bit: its tokens are
the same unless two scores agree to 1e-14, or the weight before a token and top-p's to 1e-9.

Every row has an answer. NaN counts as -inf; of a row with +inf only those tokens count, as equals;
a row that has nothing but -inf takes token 0. Whether an answer means anything is another question:
:func:`have_finite` tells the rows that had something to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.sampling.philox import DrawKeys, gumbel_at, gumbel_rows
from engine.sampling.rules_numpy import WEIGHT_SCALE, Logits, RowSampler, best_of_rows
from engine.spec.steps import Float32Array, Int32Array

# If a smaller share of the vocabulary than this is kept, noise is drawn for the kept tokens only.
FEW_KEPT_SHARE = 1 / 16
# Borders are looked for among this many best tokens before the whole vocabulary is sorted.
FIRST_RANKED = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """Sampling values of R rows, named as in ``SamplingParams``, and what counts their draws."""

    temperatures: Float32Array
    min_ps: Float32Array
    top_ks: Int32Array
    top_ps: Float32Array
    keys: DrawKeys

    @property
    def random_rows(self) -> Int32Array:
        """Rows that draw, ascending."""
        return np.flatnonzero(self.temperatures > 0).astype(np.int32)

    def take(self, rows: Int32Array) -> SamplingRows:
        """The same values of some rows."""
        return SamplingRows(
            temperatures=self.temperatures[rows],
            min_ps=self.min_ps[rows],
            top_ks=self.top_ks[rows],
            top_ps=self.top_ps[rows],
            keys=self.keys.take(rows),
        )


def sample(logits: Tensor, values: SamplingRows, *, on_cpu: RowSampler | None = None) -> Tensor:
    """The next token of each row of ``logits[R, V]`` -> ids i8[R]; -inf is chosen only if there is
    nothing else.

    A row's answer depends on its logits and its own sampling values only. ``on_cpu`` (made for
    V tokens) saves making one on every call.
    """
    if logits.device.type == "cpu":
        return _sample_on_cpu(logits, values, on_cpu)
    ids = largest_ids(logits)
    drawing = values.random_rows
    if len(drawing):
        rows = to_device(drawing, logits.device)
        ids[rows] = draw(logits[rows], values.take(drawing))
    return ids


def _sample_on_cpu(logits: Tensor, values: SamplingRows, sampler: RowSampler | None) -> Tensor:
    """Row by row in numpy: a row stays in the cache, and numpy's sort and exponential are
    several times torch's (128,256 numbers: 0.5 against 9 ms, 0.07 against 0.16 ms).
    """
    rows = _as_numpy(logits)
    ids = best_of_rows(rows)
    drawing = values.random_rows
    if len(drawing) and sampler is None:
        sampler = RowSampler(logits.shape[1])
    for row in drawing.tolist():
        assert sampler is not None
        ids[row] = sampler.draw(
            rows[row],
            temperature=float(values.temperatures[row]),
            min_p=float(values.min_ps[row]),
            top_k=int(values.top_ks[row]),
            top_p=float(values.top_ps[row]),
            key=values.keys.take(slice(row, row + 1)),
        )
    return torch.from_numpy(ids)


def largest_ids(logits: Tensor) -> Tensor:
    """The largest of each row of ``logits[R, V]`` (the first of equals; NaN as -inf), i8[R]."""
    if logits.device.type == "cpu":
        return torch.from_numpy(best_of_rows(_as_numpy(logits)))
    return without_nan(logits).argmax(dim=-1)


def have_finite(logits: Tensor, ids: Tensor) -> Tensor:
    """Which rows of ``logits[R, V]`` hold a finite value, bool[R]; ``ids`` i8[R] were chosen there.

    On CPU only rows whose chosen logit is not finite are looked through. Elsewhere all rows are,
    since finding out which those are would wait for the device.
    """
    if logits.device.type != "cpu":
        return finite_rows(logits)
    found = logits.gather(1, ids[:, None]).squeeze(1).isfinite()
    for row in (~found).nonzero().flatten().tolist():
        found[row] = logits[row].isfinite().any()
    return found


def finite_rows(logits: Tensor) -> Tensor:
    """Which rows of ``logits[R, V]`` hold a finite value, bool[R], without waiting for a device."""
    infinite = -torch.inf
    known = logits.nan_to_num(nan=infinite, posinf=infinite, neginf=infinite)
    return known.amax(dim=-1) > infinite


def without_nan(logits: Tensor) -> Tensor:
    """``logits`` with -inf for NaN, a new tensor."""
    return logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def ordinary_rows(logits: Tensor) -> Tensor:
    """``logits[R, V]`` as the rule above reads them: the best of each row is finite, none is NaN.

    Rows that are so already stay as they are.
    """
    on_cpu = logits.device.type == "cpu"  # elsewhere looking would wait for the device
    if on_cpu and bool(logits.amax(dim=-1).isfinite().all()):
        return logits
    rows = without_nan(logits)
    best = rows.amax(dim=-1, keepdim=True)
    only_infinite = torch.zeros_like(rows).masked_fill_(rows != torch.inf, -torch.inf)
    rows = torch.where(best == torch.inf, only_infinite, rows)
    rows[:, :1].masked_fill_(best == -torch.inf, 0.0)
    return rows


def draw(logits: Tensor, values: SamplingRows) -> Tensor:
    """Gumbel-max over the tokens that min-p, top-k and top-p keep; every row has temperature > 0.

    The rule of :class:`engine.sampling.rules_numpy.RowSampler` for all rows at once, in torch
    operations on any device; limits wait for the device. CUDA ranks take it for float64 logits
    only.
    """
    device, vocab_size = logits.device, logits.shape[1]
    scores = ordinary_rows(logits).to(torch.float64, copy=True)  # the rows given stay as they are
    scores -= scores.amax(dim=-1, keepdim=True)
    scores /= to_device(values.temperatures.astype(np.float64), device)[:, None]
    is_limited = (values.top_ks > 0) | (values.top_ps < 1) | (values.min_ps > 0)
    if is_limited.any():
        limited = np.flatnonzero(is_limited)
        rows = to_device(limited, device)
        scores[rows] = _limited(scores[rows], values.take(limited.astype(np.int32)))
    if is_limited.all():
        most_kept = int(scores.isfinite().sum(dim=-1).max())
        if most_kept <= vocab_size * FEW_KEPT_SHARE:
            top = scores.topk(most_kept, dim=-1)
            best = (top.values + gumbel_at(values.keys, lanes=top.indices)).argmax(-1, keepdim=True)
            return top.indices.gather(1, best).squeeze(1)
    noise = gumbel_rows(values.keys, num_lanes=vocab_size, device=device)
    return (scores + noise).argmax(dim=-1)


def _limited(scores: Tensor, values: SamplingRows) -> Tensor:
    """``scores`` with everything below each row's min-p, top-k and then top-p border at -inf."""
    device, vocab_size = scores.device, scores.shape[1]
    with np.errstate(divide="ignore"):
        lowest = np.log(values.min_ps.astype(np.float64))
    scores = scores.masked_fill(scores < to_device(lowest, device)[:, None], -torch.inf)
    if not ((values.top_ks > 0) | (values.top_ps < 1)).any():
        return scores
    top_ks = np.where(values.top_ks > 0, np.minimum(values.top_ks, vocab_size), vocab_size)
    is_deep = (values.top_ks == 0) | (values.top_ks > FIRST_RANKED)
    width = min(vocab_size, FIRST_RANKED) if is_deep.any() else int(top_ks.max())
    limits = to_device(top_ks.astype(np.int64), device)[:, None]
    top_ps = to_device(values.top_ps.astype(np.float64), device)[:, None]
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
    weights = _weights(ranked).masked_fill_(~is_top, 0.0)
    is_whole = limits >= scores.shape[1]
    whole = _weights(scores).sum(dim=-1, keepdim=True)
    wanted = top_ps * torch.where(is_whole, whole, weights.sum(dim=-1, keepdim=True))
    # A token is kept while less than the wanted weight lies before it.
    before = weights.cumsum(dim=-1) - weights
    is_open = is_whole & (top_ps >= 1)
    if width < scores.shape[1]:
        is_reached = is_open | (before[:, -1:] + weights[:, -1:] >= wanted)
        if not torch.where(is_whole, is_reached, limits <= width).all():
            return None
    is_kept = is_top & ((before < wanted) | (top_ps >= 1))
    num_kept = is_kept.sum(dim=-1, keepdim=True).clamp(min=1)
    return ranked.gather(1, num_kept - 1).masked_fill_(is_open, -torch.inf)


def _weights(scores: Tensor) -> Tensor:
    """Unnormalised probabilities as whole numbers."""
    return scores.exp().mul_(WEIGHT_SCALE).round_()


def _as_numpy(logits: Tensor) -> Logits:
    is_known = logits.dtype in (torch.float32, torch.float64)
    array: Logits = (logits if is_known else logits.float()).numpy()
    return array
