"""The running set: sequences with a row in the arrays, and the KV blocks they hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.kv import BlockPool
from engine.sequences import Sequence, SequenceTable
from engine.steps import Int32Array

SlotArray = npt.NDArray[np.intp]


class RunningSet:
    """Sequences in the order they were admitted, their array rows and their KV blocks.

    Questions and growth are vectorised over rows, so hundreds of decodes cost one array pass.
    """

    def __init__(
        self, *, num_slots: int, num_blocks: int, block_size: int, max_blocks: int
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.table = SequenceTable(num_slots=num_slots, max_blocks=max_blocks)
        self.sequences: list[Sequence] = []
        self.slots: SlotArray = np.empty(0, np.intp)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def pending(self) -> Int32Array:
        """Known tokens not yet computed, per row; 1 for a decode."""
        return self.table.num_tokens[self.slots] - self.table.num_computed[self.slots]

    @property
    def in_flight(self) -> npt.NDArray[np.bool_]:
        return self.table.in_flight[self.slots]

    @property
    def promised_blocks(self) -> int:
        """Blocks that running prefills will still claim for tokens already known."""
        table, slots = self.table, self.slots
        missing = self.blocks_for_each(table.num_tokens[slots]) - table.num_blocks[slots]
        return int(np.maximum(missing, 0).sum())

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def blocks_for_each(self, num_tokens: Int32Array) -> Int32Array:
        """Blocks that hold each count of tokens."""
        return (num_tokens + (self.block_size - 1)) // self.block_size

    def missing_blocks(self, slots: SlotArray, num_new: int) -> Int32Array:
        """Blocks each row lacks to hold ``num_new`` more tokens."""
        table = self.table
        wanted = self.blocks_for_each(table.num_computed[slots] + np.int32(num_new))
        missing: Int32Array = np.maximum(wanted - table.num_blocks[slots], 0)
        return missing

    def can_grow(self, slots: SlotArray, num_new: int) -> bool:
        """Whether the pool holds what :meth:`grow` would take."""
        return self.pool.can_allocate(int(self.missing_blocks(slots, num_new).sum()))

    def steps_within_blocks(self, limit: int) -> int:
        """Most decode steps of all rows, up to ``limit``, whose new blocks are free."""
        low, high = 0, max(limit, 0)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.can_grow(self.slots, middle)
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def check_integrity(self) -> None:
        """Assert that KV blocks, slots and lengths balance; cheap enough for every test."""
        table, slots = self.table, self.slots
        assert [s.slot for s in self.sequences] == slots.tolist(), "slots and sequences differ"
        assert table.num_free_slots + len(self) == table.num_slots, "a slot is lost"
        self.pool.check_integrity(table.held_blocks(int(slot)) for slot in slots)
        assert np.all(table.num_computed[slots] <= table.num_tokens[slots]), "beyond known tokens"
        capacity = table.num_blocks[slots] * self.block_size
        assert np.all(table.num_computed[slots] <= capacity), "KV tokens without a block"

    def place(self, sequence: Sequence) -> int:
        """Give a waiting sequence a row; nothing of it is in the KV cache yet."""
        slot = self.table.place(sequence)
        self.sequences.append(sequence)
        self.slots = np.append(self.slots, slot)
        return slot

    def drop(self, sequence: Sequence) -> None:
        """Free the row and the blocks of a sequence."""
        self.sequences.remove(sequence)
        self.slots = self.slots[self.slots != sequence.slot]
        self.pool.free(self.table.remove(sequence))

    def grow(self, slots: SlotArray, num_new: int) -> None:
        """Give rows the blocks for ``num_new`` more tokens each; the caller has made room.

        Blocks are taken in the order that single decode steps would take them, so that many
        steps at once leave the same state as one after the other.
        """
        table = self.table
        held, computed = table.num_blocks[slots], table.num_computed[slots]
        wanted = self.missing_blocks(slots, num_new)
        total = int(wanted.sum())
        if not total:
            return
        rows = np.repeat(np.arange(len(slots)), wanted)
        nth = np.arange(total) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        # The nth extra block of a row is needed at the step that writes its first token.
        needed_at = (held[rows] + nth) * self.block_size - computed[rows]
        blocks = np.empty(total, np.int32)
        blocks[np.lexsort((rows, needed_at))] = self.pool.allocate(total)
        table.blocks[slots[rows], held[rows] + nth] = blocks
        table.num_blocks[slots] += wanted

    def advance(self, num_steps: int) -> None:
        """One more token per row and step, for all rows; the caller knows the blocks are free."""
        self.grow(self.slots, num_steps)
        self.table.num_computed[self.slots] += np.int32(num_steps)
        self.table.num_tokens[self.slots] += np.int32(num_steps)
