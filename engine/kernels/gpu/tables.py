"""One step's tables as one array of the device, which a CUDA graph can be given anew.

Everything that the kernels must know of a step is in one i4 array, so that it is one copy to the
device. Its sections have sizes that depend on the :class:`StepShape` only, but for the last::

    slots[rows] positions[rows] decodes[D] tiles[T, 2] seqs[S, 4] | blocks of all sequences

Padding: slot -1 (nothing is written), sequence -1 (a program that returns at once).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.attention_plan import StepTables
from engine.spec.steps import Int32Array

NOTHING = -1


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """How many of each thing the kernels are launched for; a step fits if it has no more.

    ``num_rows`` tokens with their padding, ``num_decodes`` sequences with one new token, and
    ``num_tiles`` runs of at most ``tile_tokens`` new tokens of the others; ``num_seqs`` in all.
    """

    num_rows: int
    num_decodes: int
    num_tiles: int
    num_seqs: int
    tile_tokens: int

    @classmethod
    def of(cls, tables: StepTables, *, num_rows: int, tile_tokens: int) -> StepShape:
        """The smallest shape that ``tables`` fit, with ``num_rows`` rows."""
        lengths = tables.query_lens
        is_decode = lengths == 1
        return cls(
            num_rows=num_rows,
            num_decodes=int(is_decode.sum()),
            num_tiles=int((-(-lengths[~is_decode] // tile_tokens)).sum()),
            num_seqs=len(lengths),
            tile_tokens=tile_tokens,
        )

    @classmethod
    def largest(cls, num_rows: int, *, tile_tokens: int, has_prefill: bool) -> StepShape:
        """What any step of ``num_rows`` tokens fits, or any that only decodes."""
        # A tile has at least one token, and a sequence that does not decode has at least two. Only
        # sequences a little longer than a tile can make more tiles than half the tokens.
        num_tiles = min(num_rows, num_rows // 2 + num_rows // tile_tokens) if has_prefill else 0
        return cls(
            num_rows=num_rows,
            num_decodes=num_rows,
            num_tiles=num_tiles,
            num_seqs=num_rows,
            tile_tokens=tile_tokens,
        )

    @property
    def sections(self) -> tuple[int, ...]:
        """Entries of slots, positions, decodes, tiles and seqs."""
        return (
            self.num_rows,
            self.num_rows,
            self.num_decodes,
            2 * self.num_tiles,
            4 * self.num_seqs,
        )

    @property
    def num_fixed(self) -> int:
        """Entries before the blocks."""
        return sum(self.sections)


@dataclass(frozen=True, kw_only=True)
class DeviceTables:
    """The packed ``array`` i4[:] on the device and its sections."""

    shape: StepShape
    array: Tensor
    slots: Tensor
    positions: Tensor
    decodes: Tensor
    tiles: Tensor
    seqs: Tensor
    blocks: Tensor

    @classmethod
    def over(cls, array: Tensor, shape: StepShape) -> DeviceTables:
        """The sections of ``array``, as :func:`pack` laid them out."""
        ends = list(accumulate(shape.sections))
        slots, positions, decodes, tiles, seqs = (
            array[end - size : end] for end, size in zip(ends, shape.sections, strict=True)
        )
        return cls(
            shape=shape,
            array=array,
            slots=slots,
            positions=positions,
            decodes=decodes,
            tiles=tiles,
            seqs=seqs,
            blocks=array[ends[-1] :],
        )


def pack(tables: StepTables, shape: StepShape, *, block_size: int) -> Int32Array:
    """The array of ``tables``, padded to ``shape``, on the host."""
    num_tokens, num_seqs = len(tables.positions), len(tables.query_lens)
    widths = -(-tables.totals // block_size)
    first_blocks = np.cumsum(widths) - widths
    array = np.full(shape.num_fixed + int(widths.sum()), NOTHING, np.int32)
    ends = np.cumsum(shape.sections)
    slots, positions, decodes, tiles, seqs, blocks = np.split(array, ends)
    slots[:num_tokens] = tables.slots(block_size)
    positions[:num_tokens] = tables.positions
    positions[num_tokens:] = 0
    decoding = np.flatnonzero(tables.query_lens == 1)
    decodes[: len(decoding)] = decoding
    found = _tiles(tables, shape.tile_tokens)
    tiles.reshape(-1, 2)[: len(found)] = found
    columns = (tables.starts, tables.query_lens, tables.totals, first_blocks)
    seqs.reshape(-1, 4)[:num_seqs] = np.stack(columns, axis=1)
    is_used = np.arange(tables.block_tables.shape[1]) < widths[:, None]
    blocks[:] = tables.block_tables[is_used]
    return array


def _tiles(tables: StepTables, tile_tokens: int) -> npt.NDArray[np.int64]:
    """Sequence and first new token of each tile, ``[T, 2]``. Tiles with the most to read come
    first, so that none of them is left for the end.
    """
    seqs = np.flatnonzero(tables.query_lens > 1)
    counts = -(-tables.query_lens[seqs] // tile_tokens)
    owners = np.repeat(seqs, counts)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.stack([owners, numbers * tile_tokens], axis=1)
    reach = tables.context_lens[owners] + found[:, 1]
    return found[np.argsort(-reach, kind="stable")]


def empty_tables(shape: StepShape, num_blocks: int, device: torch.device) -> DeviceTables:
    """Tables of ``shape`` with nothing in them, and room for ``num_blocks`` blocks."""
    array = torch.full((shape.num_fixed + num_blocks,), NOTHING, dtype=torch.int32, device=device)
    tables = DeviceTables.over(array, shape)
    tables.positions.zero_()
    return tables
