"""Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers", SC11).

A draw is a pure function of (request seed, choice index, output position, lane). Nothing is kept
between draws, so seeded output is the same after preemption, on any rank, row, plan or mode. The
one definition below runs on numpy and on torch arrays alike: both wrap int64 products modulo
2**64, which is all that Philox needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Words = TypeVar("Words", npt.NDArray[np.int64], "Tensor")

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANES_PER_BLOCK = 4
_SCALE = 2.0**-32


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four 32-bit words (in int64 arrays) for a 128-bit counter and 64-bit key.

    All arrays are int64, hold values in 0..2**32-1 and broadcast against each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(_ROUNDS):
        if number:
            k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # The shift is arithmetic; the mask drops the sign bits it drags in.
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
    return c0, c1, c2, c3


def split_seeds(seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Seeds u8[R] -> key words i8[R, 2], low word first."""
    words = np.stack([seeds & np.uint64(_MASK), seeds >> np.uint64(32)], axis=-1)
    return words.astype(np.int64)


def row_words(keys: Words, choices: Words, positions: Words, blocks: Words) -> tuple[Words, ...]:
    """Four words of each row and block: ``keys`` [R, 2], ``choices`` and ``positions`` [R],
    ``blocks`` [R or 1, B] -> four arrays [R, B]. Lane ``4*b + w`` is word w of block b.
    """
    position, choice = positions[:, None], choices[:, None]
    key = keys[:, :1], keys[:, 1:]
    return philox4x32((blocks, position, choice, choice & 0), key)


def uniform(
    *,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    choice: int = 0,
    num_lanes: int = 1,
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), f8[R, num_lanes], of rows with ``seeds`` u8[R] and output
    ``positions`` i4[R]; ``choice`` is the index among a request's parallel choices.
    """
    blocks = np.arange(-(-num_lanes // _LANES_PER_BLOCK), dtype=np.int64)[None, :]
    rows = positions.astype(np.int64)
    words = row_words(split_seeds(seeds), np.full_like(rows, choice), rows, blocks)
    lanes = np.stack(words, axis=-1).reshape(len(rows), -1)
    return np.asarray(lanes[:, :num_lanes] * _SCALE)


def gumbel_rows(
    *,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    num_lanes: int,
    device: torch.device,
    choice: int = 0,
) -> Tensor:
    """Standard Gumbel numbers f8[R, num_lanes] on ``device``, one per row and lane."""
    import torch

    blocks = torch.arange(-(-num_lanes // _LANES_PER_BLOCK), device=device)[None, :]
    words = row_words(*_row_tensors(seeds, positions, choice, device), blocks)
    return _gumbel(torch.stack(words, dim=-1).flatten(1)[:, :num_lanes])


def gumbel_at(
    *,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    lanes: Tensor,
    choice: int = 0,
) -> Tensor:
    """The columns ``lanes`` i8[R, K] of :func:`gumbel_rows`, without drawing the rest."""
    import torch

    rows = _row_tensors(seeds, positions, choice, lanes.device)
    words = torch.stack(row_words(*rows, lanes // _LANES_PER_BLOCK), dim=-1)
    return _gumbel(words.gather(-1, (lanes % _LANES_PER_BLOCK).unsqueeze(-1)).squeeze(-1))


def _row_tensors(
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    choice: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [R, 2], choices [R] and positions [R] on ``device``."""
    import torch

    rows = torch.from_numpy(positions.astype(np.int64)).to(device)
    keys = torch.from_numpy(split_seeds(seeds)).to(device)
    return keys, torch.full_like(rows, choice), rows


def _gumbel(words: Tensor) -> Tensor:
    """``-log(-log(u))`` with u at the middle of the word's interval, so never 0 or 1."""
    return words.double().add_(0.5).mul_(_SCALE).log_().neg_().log_().neg_()
