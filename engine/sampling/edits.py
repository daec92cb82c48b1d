"""What a request changes in its logits before they are sampled: bias, penalties, banned ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.spec.steps import Float32Array, Int32Array, SlotSampling, SlotStart, int32
from engine.spec.token_counts import more_rows


@dataclass(frozen=True, kw_only=True)
class SlotEdits:
    """What one slot's sequence edits; ids are those inside the vocabulary."""

    bias_ids: Int32Array
    bias_values: Float32Array
    banned_ids: Int32Array
    min_tokens: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float

    @classmethod
    def find(cls, sampling: SlotSampling, *, vocab_size: int) -> SlotEdits | None:
        """The edits of ``sampling``, None where it has none."""
        inside = range(vocab_size)
        bias = {token: value for token, value in sampling.logit_bias.items() if token in inside}
        banned = {token for token in sampling.banned_ids if token in inside}
        if not (bias or sampling.has_penalties or (banned and sampling.min_tokens)):
            return None
        return cls(
            bias_ids=np.array(list(bias), dtype=np.int32),
            bias_values=np.array(list(bias.values()), dtype=np.float32),
            banned_ids=np.array(sorted(banned), dtype=np.int32),
            min_tokens=sampling.min_tokens if banned else 0,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
        )

    def banned_at(self, position: int) -> Int32Array:
        """The ids that the output at ``position`` may not be."""
        return self.banned_ids if position < self.min_tokens else self.banned_ids[:0]

    @property
    def is_lasting(self) -> bool:
        """Whether more than the ban before ``min_tokens`` is edited."""
        return len(self.bias_ids) > 0 or self.has_penalties

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


@dataclass(frozen=True, kw_only=True)
class RowEdits:
    """What is edited in one ``row`` of a step; ``penalties`` are repetition, frequency, presence.

    ``count_row`` is the row of the token counts, -1 without penalties.
    """

    row: int
    bias_ids: Int32Array
    bias_values: Float32Array
    banned_ids: Int32Array
    penalties: tuple[float, float, float]
    count_row: int


class LogitEdits:
    """The edits of every slot, with the token counts that penalties need.

    Counts take 5 bytes per token of the vocabulary and slot with penalties; they are kept where
    the logits are and updated without waiting for the device.
    """

    def __init__(self, *, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self.counts = TokenCounts(vocab_size=vocab_size, num_slots=num_slots, device=device)
        self._edits: dict[int, SlotEdits] = {}
        # A row is edited while its output position is below its slot's bound.
        self._edited_until = np.zeros(num_slots, dtype=np.int64)

    def start(self, start: SlotStart) -> None:
        """Forget what the slot held and take over the edits of ``start``."""
        self._edits.pop(start.slot, None)
        self.counts.drop(start.slot)
        self._edited_until[start.slot] = 0
        edits = SlotEdits.find(start.sampling, vocab_size=self._vocab_size)
        if edits is None:
            return
        self._edits[start.slot] = edits
        lasting = np.iinfo(np.int64).max
        self._edited_until[start.slot] = lasting if edits.is_lasting else edits.min_tokens
        if edits.has_penalties:
            known = np.concatenate([int32(start.past_ids), int32(start.token_ids)])
            self.counts.fill(
                start.slot, prompt=known[: start.prompt_len], output=known[start.prompt_len :]
            )

    def are_edited(self, slots: Int32Array, positions: Int32Array) -> npt.NDArray[np.bool_]:
        """Which rows are edited, bool[R]."""
        return np.asarray(positions < self._edited_until[slots])

    def of_rows(self, slots: Int32Array, positions: Int32Array) -> list[RowEdits]:
        """What kernels need to know of the edited ones among R rows."""
        found = []
        for row in np.flatnonzero(self.are_edited(slots, positions)).tolist():
            slot = int(slots[row])
            edit = self._edits[slot]
            found.append(
                RowEdits(
                    row=row,
                    bias_ids=edit.bias_ids,
                    bias_values=edit.bias_values,
                    banned_ids=edit.banned_at(int(positions[row])),
                    penalties=(
                        edit.repetition_penalty,
                        edit.frequency_penalty,
                        edit.presence_penalty,
                    ),
                    count_row=self.counts.row_of(slot),
                )
            )
        return found

    def edited(self, logits: Tensor, *, slots: Int32Array, positions: Int32Array) -> Tensor:
        """``logits[R, V]`` of edited rows, edited, in float32 (float64 stays); a new tensor.

        A row keeps its banned tokens if all its tokens are banned.
        """
        edits = [self._edits[slot] for slot in slots.tolist()]
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logits = logits.to(wide, copy=True)
        self._add_bias(logits, edits)
        self._penalize(logits, edits, slots)
        return self._ban(logits, edits, positions)

    def count(self, slots: Int32Array, ids: Tensor) -> None:
        """Note that each of ``slots`` i4[R] was given its token of ``ids`` i8[R]."""
        self.counts.add(slots, ids)

    def _add_bias(self, logits: Tensor, edits: list[SlotEdits]) -> None:
        lengths = [len(edit.bias_ids) for edit in edits]
        if not any(lengths):
            return
        values = np.concatenate([edit.bias_values for edit in edits])
        at = self._at(lengths, [edit.bias_ids for edit in edits])
        logits.index_put_(at, self._here(values).to(logits.dtype), accumulate=True)

    def _penalize(self, logits: Tensor, edits: list[SlotEdits], slots: Int32Array) -> None:
        penalized = [row for row, edit in enumerate(edits) if edit.has_penalties]
        if not penalized:
            return

        def column(values: list[float]) -> Tensor:
            return self._here(np.array(values))[:, None].to(logits.dtype)

        repetition = column([edits[row].repetition_penalty for row in penalized])
        frequency = column([edits[row].frequency_penalty for row in penalized])
        presence = column([edits[row].presence_penalty for row in penalized])
        rows = self._here(np.array(penalized))
        counts, is_in_prompt = self.counts.of_slots(slots[penalized])
        is_in_output = counts > 0
        some = logits[rows]
        repeated = torch.where(some > 0, some / repetition, some * repetition)
        some = torch.where(is_in_prompt | is_in_output, repeated, some)
        some -= frequency * counts
        some -= presence * is_in_output
        logits[rows] = some

    def _ban(self, logits: Tensor, edits: list[SlotEdits], positions: Int32Array) -> Tensor:
        banned = [
            edit.banned_at(position)
            for edit, position in zip(edits, positions.tolist(), strict=True)
        ]
        lengths = [len(ids) for ids in banned]
        if not any(lengths):
            return logits
        at = self._at(lengths, banned)
        nothing = logits.new_full((), -torch.inf)
        left = logits.index_put(at, nothing)
        has_some = (left > -torch.inf).any(dim=-1, keepdim=True)  # NaN counts as -inf
        return torch.where(has_some, left, logits)

    def _at(self, lengths: list[int], ids: list[Int32Array]) -> tuple[Tensor, Tensor]:
        """Row and column of each of ``ids``; row i has ``lengths[i]`` of them."""
        rows = np.repeat(np.arange(len(lengths)), lengths)
        return self._here(rows), self._here(np.concatenate(ids).astype(np.int64))

    def _here(self, array: npt.NDArray[Any]) -> Tensor:
        return to_device(array, self.counts.device)


class TokenCounts:
    """How often each token is in a slot's output, and whether it is in its prompt.

    Slots with penalties share a pool of rows that grows when it is full
    (:mod:`engine.spec.token_counts`).
    """

    def __init__(self, *, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self.device = device
        self._row_of_slot = np.full(num_slots, -1, dtype=np.int64)
        self._free: list[int] = []
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._is_in_prompt = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)

    def drop(self, slot: int) -> None:
        """Give the slot's row back, if it has one."""
        row = int(self._row_of_slot[slot])
        if row >= 0:
            self._free.append(row)
            self._row_of_slot[slot] = -1

    def fill(self, slot: int, *, prompt: Int32Array, output: Int32Array) -> None:
        """Give the slot, which has none, a row that counts these tokens."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._row_of_slot[slot] = row
        self._counts[row].zero_()
        self._is_in_prompt[row].zero_()
        self._is_in_prompt[row].index_fill_(0, self._index(np.unique(prompt)), True)
        ids, counts = np.unique(output, return_counts=True)
        counted = to_device(counts.astype(np.int32), self.device)
        self._counts[row].index_copy_(0, self._index(ids), counted)

    def row_of(self, slot: int) -> int:
        """The slot's row, -1 if it has none."""
        return int(self._row_of_slot[slot])

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """All rows' counts i4[P, V] and prompt masks u1[P, V], zero or one."""
        return self._counts, self._is_in_prompt.view(torch.uint8)

    def add(self, slots: Int32Array, ids: Tensor) -> None:
        """Count one more token for each of ``slots`` i4[R], which differ, that has a row.

        Slots without one add 0 to the first number, so that what runs depends on R alone.
        """
        rows = self._row_of_slot[slots]
        if (rows >= 0).any():
            firsts = self._index(rows * self._width)
            at, has_row = (firsts + ids).clamp_(min=0), firsts >= 0
            at.mul_(has_row)
            self._counts.view(-1).index_add_(0, at, has_row.int())

    def of_slots(self, slots: Int32Array) -> tuple[Tensor, Tensor]:
        """Counts i4[P, V] and prompt mask bool[P, V] of slots that have rows."""
        rows = self._index(self._row_of_slot[slots])
        return self._counts[rows], self._is_in_prompt[rows]

    def _grow(self) -> None:
        old = len(self._counts)
        rows = more_rows(old, len(self._row_of_slot))
        self._counts = _with_rows(self._counts, rows)
        self._is_in_prompt = _with_rows(self._is_in_prompt, rows)
        self._free = list(range(rows - 1, old - 1, -1))

    @property
    def _width(self) -> int:
        return self._counts.shape[1]

    def _index(self, array: npt.NDArray[Any]) -> Tensor:
        return to_device(array.astype(np.int64), self.device)


def _with_rows(pool: Tensor, rows: int) -> Tensor:
    """``pool[P, V]`` with zeros below it, up to ``rows``; no third copy lies beside the two."""
    grown = pool.new_zeros((rows, pool.shape[1]))
    grown[: len(pool)] = pool
    return grown
