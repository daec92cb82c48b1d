"""Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers", SC11).

A draw is a pure function of (request seed, choice index, output position, lane). Nothing is kept
between draws, so seeded output is the same after preemption, on any rank, row, plan or mode. The
one definition below runs on numpy and on torch arrays alike: both wrap int64 products modulo
2**64, which is all that Philox needs.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class DrawKeys:
    """The counters of the draws of R rows: request ``seeds`` u8[R], ``choices`` i4[R] (the index
    among a request's parallel outputs) and output ``positions`` i4[R].
    """

    seeds: npt.NDArray[np.uint64]
    choices: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, rows: npt.NDArray[np.int32] | slice) -> DrawKeys:
        """The keys of some rows."""
        return DrawKeys(
            seeds=self.seeds[rows], choices=self.choices[rows], positions=self.positions[rows]
        )

    def words(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Philox keys i8[R, 2], choices i8[R] and positions i8[R]."""
        return (
            split_seeds(self.seeds),
            self.choices.astype(np.int64),
            self.positions.astype(np.int64),
        )


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


def uniform(keys: DrawKeys, *, num_lanes: int = 1) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), f8[R, num_lanes]."""
    blocks = np.arange(num_blocks(num_lanes), dtype=np.int64)[None, :]
    lanes = np.stack(row_words(*keys.words(), blocks), axis=-1).reshape(len(keys), -1)
    return np.asarray(lanes[:, :num_lanes] * _SCALE)


def num_blocks(num_lanes: int) -> int:
    """Philox blocks that hold so many lanes, four each."""
    return -(-num_lanes // _LANES_PER_BLOCK)


def fill_gumbel(
    lanes: npt.NDArray[np.float64], key: DrawKeys, work: npt.NDArray[np.uint64]
) -> None:
    """Write standard Gumbel numbers of one row into ``lanes`` f8[B, 4]; ``work`` u8[6, B] is
    scratch.
    """
    seeds, choices, positions = key.words()
    counter, products = work[:4], work[4:]
    counter[0] = np.arange(len(lanes))
    counter[1], counter[2], counter[3] = positions[0], choices[0], 0
    _philox_in_place(counter, products, int(seeds[0, 0]), int(seeds[0, 1]))
    lanes[:] = counter.T
    _gumbel_in_place(lanes)


def gumbel_lanes(keys: DrawKeys, *, lanes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel numbers f8[R, K] of the ``lanes`` i8[R, K], without drawing the rest."""
    words = row_words(*keys.words(), lanes // _LANES_PER_BLOCK)
    chosen = np.choose(lanes % _LANES_PER_BLOCK, words)
    return _gumbel_in_place(chosen.astype(np.float64))


def gumbel_rows(keys: DrawKeys, *, num_lanes: int, device: torch.device) -> Tensor:
    """Standard Gumbel numbers f8[R, num_lanes], drawn on ``device``."""
    import torch

    blocks = torch.arange(num_blocks(num_lanes), device=device)[None, :]
    words = row_words(*_key_tensors(keys, device), blocks)
    return _gumbel(torch.stack(words, dim=-1).flatten(1)[:, :num_lanes])


def gumbel_at(keys: DrawKeys, *, lanes: Tensor) -> Tensor:
    """:func:`gumbel_lanes` as a tensor, drawn on the device of ``lanes``."""
    import torch

    rows = _key_tensors(keys, lanes.device)
    words = torch.stack(row_words(*rows, lanes // _LANES_PER_BLOCK), dim=-1)
    return _gumbel(words.gather(-1, (lanes % _LANES_PER_BLOCK).unsqueeze(-1)).squeeze(-1))


def _key_tensors(keys: DrawKeys, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """:meth:`DrawKeys.words` on ``device``."""
    from engine.kernels.transfer import to_device

    seeds, choices, positions = (to_device(array, device) for array in keys.words())
    return seeds, choices, positions


def _philox_in_place(
    counter: npt.NDArray[np.uint64], products: npt.NDArray[np.uint64], k0: int, k1: int
) -> None:
    """:func:`philox4x32` of one key in the counter's own storage [4, B], with ``products`` [2, B]
    as scratch. For a whole vocabulary this takes about a third of the time that new arrays take.
    """
    c0, c1, c2, c3 = counter
    p0, p1 = products
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, 32, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(p0, 32, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p1, _MASK, out=c1)
        np.bitwise_and(p0, _MASK, out=c3)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK


def _gumbel(words: Tensor) -> Tensor:
    """``-log(-log(u))`` with u at the middle of the word's interval, so never 0 or 1."""
    return words.double().add_(0.5).mul_(_SCALE).log_().neg_().log_().neg_()


def _gumbel_in_place(words: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """:func:`_gumbel` of numpy words, in their own storage."""
    words += 0.5
    words *= _SCALE
    for _ in range(2):
        np.log(words, out=words)
        np.negative(words, out=words)
    return words
