"""Samples a step's rows on all ranks of a stage together (Albireo, arXiv 2606.01927, section 4).

Rank j of the ordered group holds shard j of the vocabulary. Sequence-parallel::

    my columns of all rows            all columns of my rows          everybody's ids
    [R, v/t]   --- all-to-all --->    [R/t, v]   sample, all-gather   [R]

so that the full sampler runs on R/t rows per rank; greedy rows need only the largest logit of
each shard. Gathered instead, every rank receives all logits and the first one samples every row.
Both give the same ids, to the bit: a row's answer depends on its own logits and values only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.parallel.mesh import RankGroups
from engine.sampling.edits import LogitEdits
from engine.sampling.exchange import exchange_rows, gather_rows, whole_rows
from engine.sampling.largest import Largest
from engine.sampling.logprobs import RowLogprobs, row_logprobs
from engine.sampling.rules import (
    SamplingRows,
    have_finite,
    largest_ids,
    sample,
    without_nan,
)
from engine.sampling.rules_numpy import RowSampler
from engine.sampling.table import SamplingTable
from engine.spec.steps import NO_TOKEN, Int32Array, SlotStart

Flags = npt.NDArray[np.bool_]

# On CPU, a few rows at a time are put together and sampled, while they are in the cache.
CPU_ROWS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class SampledTokens:
    """``ids`` i8[R] on every rank of the stage, on its device; ``NO_TOKEN`` where the model's
    logits hold no finite value.

    ``logprobs`` of all R rows if one of them asked, on the group's first rank (at least).
    """

    ids: Tensor
    logprobs: RowLogprobs | None

    @property
    def fed_ids(self) -> Tensor:
        """``ids`` as the next step may embed them: rows without a token have ended by then."""
        return self.ids.clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """R rows to sample; ``num_best`` is K of the whole step, -1 without log probabilities."""

    slots: Int32Array
    values: SamplingRows
    is_edited: Flags
    is_told: Flags
    num_best: int

    @property
    def is_plain(self) -> Flags:
        """Rows whose answer is the largest logit and nothing else."""
        return np.asarray((self.values.temperatures == 0) & ~self.is_edited & ~self.is_told)

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: Int32Array) -> _Rows:
        """Some of the rows."""
        return _Rows(
            slots=self.slots[rows],
            values=self.values.take(rows),
            is_edited=self.is_edited[rows],
            is_told=self.is_told[rows],
            num_best=self.num_best,
        )


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """``ids`` i8 of some rows and, where the step tells any, their log probabilities."""

    ids: Tensor
    told: RowLogprobs | None

    @classmethod
    def joined(cls, parts: list[_Answers]) -> _Answers:
        """The rows of all ``parts``, in order."""
        told = [part.told for part in parts if part.told is not None]
        return cls(
            ids=torch.cat([part.ids for part in parts]),
            told=RowLogprobs.joined(told) if told else None,
        )


class Sampler:
    """The sampler of one rank of the last stage; keeps values and token counts by slot.

    Owned by the thread that computes. Every rank of the stage makes the same calls in the same
    order. ``is_parallel`` chooses between the two ways above. ``has_kernels`` (None: on CUDA)
    samples by Triton kernels, which never make the host wait for the device; only float64 logits,
    which no model on a GPU has, take torch operations that do.

    Raises (from :meth:`sample`):
        RankError: a peer did not come to the exchange.
    """

    def __init__(
        self,
        *,
        groups: RankGroups,
        vocab_size: int,
        num_slots: int,
        is_parallel: bool,
        device: torch.device | str,
        has_kernels: bool | None = None,
    ) -> None:
        self._group = groups.shift
        self._vocab_size = vocab_size
        self._is_parallel = is_parallel
        self._device = torch.device(device)
        self._table = SamplingTable(num_slots)
        is_cpu = self._device.type == "cpu"
        self._on_cpu = RowSampler(vocab_size) if is_cpu else None
        self._largest_here = Largest() if is_cpu else None
        self._has_kernels = self._device.type == "cuda" if has_kernels is None else has_kernels
        with torch.inference_mode():
            self._edits = LogitEdits(
                vocab_size=vocab_size, num_slots=num_slots, device=self._device
            )

    @torch.inference_mode()
    def compile_kernels(self, dtype: torch.dtype) -> None:
        """Have the kernels for logits of ``dtype`` ready, so that no step waits for a compiler."""
        if self._has_kernels and dtype != torch.float64:
            from engine.sampling.triton_sampler import compile_kernels

            compile_kernels(
                vocab_size=self._vocab_size,
                dtype=dtype,
                device=self._device,
                counts=self._edits.counts,
            )

    @torch.inference_mode()
    def start(self, start: SlotStart) -> None:
        """A sequence takes a slot: whatever it held is forgotten."""
        self._table.put(start.slot, start.sampling)
        self._edits.start(start)

    @torch.inference_mode()
    def sample(self, shard: Tensor, *, slots: Int32Array, positions: Int32Array) -> SampledTokens:
        """One token for each row of ``shard[R, padded vocabulary / t]``, R > 0, padding -inf.

        ``slots`` i4[R] differ; ``positions`` i4[R] are output positions (0 = first token).
        """
        if self._are_plain_here(shard, slots, positions):
            assert self._largest_here is not None, "asked for"
            return SampledTokens(ids=self._largest_here(shard), logprobs=None)
        rows = self._rows(slots, positions)
        if self._group.size == 1:
            answers = self._answers_of_blocks(shard[None], rows)
        elif self._is_parallel:
            answers = self._by_kind(shard, rows)
        else:
            answers = self._gathered(shard, rows)
        tokens = SampledTokens(ids=answers.ids, logprobs=answers.told)
        self._edits.count(slots, tokens.fed_ids)
        return tokens

    def _rows(self, slots: Int32Array, positions: Int32Array) -> _Rows:
        wanted = self._table.num_logprobs(slots)
        return _Rows(
            slots=slots,
            values=self._table.rows(slots, positions),
            is_edited=self._edits.are_edited(slots, positions),
            is_told=wanted >= 0,
            num_best=min(int(wanted.max()), self._vocab_size),
        )

    # -- sequence-parallel ---------------------------------------------------------------------

    def _by_kind(self, shard: Tensor, rows: _Rows) -> _Answers:
        """Plain rows exchange only their largest logit, the others all their logits.

        If there are fewer others than ranks, they are gathered, because padding them to one per
        rank would only send useless rows (a single top-p row on 2 CPU ranks: 0.9 ms gathered, 1.6
        ms exchanged).
        """
        is_plain = rows.is_plain
        num_others = len(rows) - int(np.count_nonzero(is_plain))
        by_rows = self._exchanged if num_others >= self._group.size else self._gathered
        if not num_others:
            return _Answers(ids=self._largest(shard), told=None)
        if num_others == len(rows):
            return by_rows(shard, rows)
        plain, rest = (np.flatnonzero(kind).astype(np.int32) for kind in (is_plain, ~is_plain))
        plain_at, rest_at = self._here(plain), self._here(rest)
        ids = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        ids[plain_at] = self._largest(shard[plain_at])
        found = by_rows(shard[rest_at], rows.take(rest))
        ids[rest_at] = found.ids
        told = None
        if found.told is not None:
            told = RowLogprobs.empty(len(rows), rows.num_best, self._device)
            told.put(rest_at, found.told)
        return _Answers(ids=ids, told=told)

    def _largest(self, shard: Tensor) -> Tensor:
        """The largest logit's id of each row (the lowest of equals), i8[R], on every rank; NO_TOKEN
        where no rank's shard holds a finite value."""
        if self._is_for_kernels(shard):
            from engine.sampling.triton_sampler import largest_on_device

            drawn = largest_on_device(shard)
            ids, is_fine = drawn.ids, drawn.is_finite
        else:
            ids = largest_ids(shard)
            is_fine = have_finite(shard, ids)
        values = without_nan(shard.gather(1, ids[:, None]).squeeze(1))
        whole_ids = ids + self._group.rank * shard.shape[1]
        mine = torch.stack([values.double(), whole_ids.double(), is_fine.double()])
        found = self._group.all_gather(mine)
        # argmax takes the first of equals: the lowest rank, which holds the lowest ids.
        best = found[:, 0].argmax(dim=0, keepdim=True)
        chosen = found[:, 1].gather(0, best).squeeze(0).long()
        return chosen.masked_fill(found[:, 2].amax(dim=0) == 0, NO_TOKEN)

    def _exchanged(self, shard: Tensor, rows: _Rows) -> _Answers:
        """Every rank samples its part of the rows, the last ones perhaps fewer."""
        part = exchange_rows(shard, self._group)
        own = np.arange(part.first, part.end, dtype=np.int32)
        answers = self._answers_of_blocks(part.blocks, rows.take(own))
        gathered = gather_rows(_packed(answers), part, self._group)
        return _unpacked(gathered, answers.told is not None)

    # -- gathered ------------------------------------------------------------------------------

    def _gathered(self, shard: Tensor, rows: _Rows) -> _Answers:
        """The first rank samples all rows; the others wait for its ids."""
        blocks = self._group.all_gather(shard.contiguous())
        if self._group.rank == 0:
            answers = self._answers_of_blocks(blocks, rows)
            mine = answers.ids.int()
        else:
            answers = None
            mine = torch.zeros(len(rows), dtype=torch.int32, device=self._device)
        ids = self._group.all_gather(mine)[0].long()
        return _Answers(ids=ids, told=answers.told if answers else None)

    # -- rows whose logits are here ------------------------------------------------------------

    def _are_plain_here(self, shard: Tensor, slots: Int32Array, positions: Int32Array) -> bool:
        """Whether this rank is on a CPU and holds all logits, and each row's answer is its largest
        one. Then all rows are looked through at once, without parts and copies.
        """
        is_here = self._group.size == 1 and self._largest_here is not None
        if not is_here or self._is_for_kernels(shard) or not self._table.are_greedy(slots):
            return False
        return not self._edits.are_edited(slots, positions).any()

    def _answers_of_blocks(self, blocks: Tensor, rows: _Rows) -> _Answers:
        """Sample rows of ``blocks[t, >= R, v/t]``, whose block j is shard j of the vocabulary."""
        num_rows = max(1, len(rows))  # without rows, one empty part is sampled
        is_cut = self._device.type == "cpu" and not self._has_kernels
        at_once = CPU_ROWS_AT_ONCE if is_cut else num_rows
        parts = []
        for first in range(0, num_rows, at_once):
            part = np.arange(first, min(first + at_once, len(rows)), dtype=np.int32)
            whole = whole_rows(blocks[:, first : first + len(part)], self._vocab_size)
            parts.append(self._answers(whole, rows.take(part)))
        return _Answers.joined(parts)

    def _answers(self, logits: Tensor, rows: _Rows) -> _Answers:
        """Sample rows of whole-vocabulary ``logits[R, V]``."""
        if self._is_for_kernels(logits):
            ids, is_fine = self._drawn(logits, rows)
        else:
            ids = sample(self._edited(logits, rows), rows.values, on_cpu=self._on_cpu)
            is_fine = have_finite(logits, ids)
        told = self._told(logits, ids, rows)
        return _Answers(ids=ids.masked_fill(~is_fine, NO_TOKEN), told=told)

    def _is_for_kernels(self, logits: Tensor) -> bool:
        return self._has_kernels and len(logits) > 0 and logits.dtype != torch.float64

    def _drawn(self, logits: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
        from engine.sampling.triton_sampler import draw_on_device

        edits = self._edits.of_rows(rows.slots, rows.values.keys.positions)
        drawn = draw_on_device(logits, rows.values, edits=edits, counts=self._edits.counts)
        return drawn.ids, drawn.is_finite

    def _edited(self, logits: Tensor, rows: _Rows) -> Tensor:
        edited = np.flatnonzero(rows.is_edited)
        if not len(edited):
            return logits
        at = self._here(edited.astype(np.int32))
        done = self._edits.edited(
            logits[at], slots=rows.slots[edited], positions=rows.values.keys.positions[edited]
        )
        if len(edited) == len(rows):
            return done
        logits = logits.to(done.dtype, copy=True)
        logits[at] = done
        return logits

    def _told(self, logits: Tensor, ids: Tensor, rows: _Rows) -> RowLogprobs | None:
        if rows.num_best < 0:
            return None
        told = RowLogprobs.empty(len(rows), rows.num_best, self._device)
        asking = np.flatnonzero(rows.is_told)
        if len(asking):
            at = self._here(asking.astype(np.int32))
            told.put(at, row_logprobs(logits[at], ids[at], rows.num_best))
        return told

    def _here(self, rows: Int32Array) -> Tensor:
        return to_device(rows, self._device)


def _packed(answers: _Answers) -> Tensor:
    """Ids and log probabilities as one i4[R, C]."""
    columns = [answers.ids[:, None].int()]
    if answers.told is not None:
        columns.append(answers.told.packed())
    return torch.cat(columns, dim=1)


def _unpacked(packed: Tensor, has_told: bool) -> _Answers:
    told = RowLogprobs.unpacked(packed[:, 1:]) if has_told else None
    return _Answers(ids=packed[:, 0].long(), told=told)
