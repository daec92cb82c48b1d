"""The running set: sequences with a row in the arrays, and the KV blocks they hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.scheduler.blocks import BlockPool
from engine.scheduler.prefix import PrefixChain, PrefixHasher
from engine.scheduler.step import NO_BLOCKS, GrownBlocks, PlacedSequence, SlotArray
from engine.scheduler.table import Sequence, SequenceTable
from engine.spec.steps import Int32Array


class RunningSet:
    """The rows of ``table`` that are taken (``slots``, in the order they were admitted) and the KV
    blocks they hold.

    Questions and growth are vectorised over rows, so hundreds of decodes cost one array pass.
    ``prefilling`` are the rows that lack more than their next token; all others decode. They are
    kept beside the lengths, because looking for them at every step made scheduling of 256 rows a
    tenth slower and simulation a twentieth.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        num_blocks: int,
        block_size: int,
        max_blocks: int,
        keeps_prefixes: bool = False,
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, keeps_prefixes=keeps_prefixes)
        self.table = SequenceTable(num_slots=num_slots, max_blocks=max_blocks)
        self.slots: SlotArray = np.empty(0, np.intp)
        self.prefilling: set[int] = set()
        self._hasher = PrefixHasher(block_size) if keeps_prefixes else None

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def pending(self) -> Int32Array:
        """Known tokens not yet computed, per row; 1 for a decode."""
        return self.table.num_tokens[self.slots] - self.table.num_computed[self.slots]

    @property
    def can_run(self) -> npt.NDArray[np.bool_]:
        """Rows with something left to compute, as far as is known."""
        table, slots = self.table, self.slots
        is_short = table.num_tokens[slots] < table.max_len[slots]
        wanted: npt.NDArray[np.bool_] = is_short & ~table.is_ended[slots]
        return wanted

    @property
    def free(self) -> SlotArray:
        """Rows that no step in flight holds and that have something to compute."""
        is_free = (self.table.in_flight[self.slots] == 0) & self.can_run
        free: SlotArray = self.slots[is_free]
        return free

    def free_behind(self, ending: SlotArray) -> SlotArray:
        """Rows with something to compute that will be free when a step with the rows ``ending``
        is over."""
        in_flight = self.table.in_flight[self.slots]
        in_step = np.zeros(self.table.num_slots, np.int8)
        in_step[ending] = 1
        # A row is free if no step in flight holds it, or only the one that ends.
        is_free = in_flight <= in_step[self.slots]
        free: SlotArray = self.slots[is_free & self.can_run]
        return free

    def in_order(self, some: SlotArray) -> SlotArray:
        """Some of the rows, in the order in which they were admitted."""
        # A mask over all slots keeps the order of ``self.slots`` without a sort.
        is_one = np.zeros(self.table.num_slots, np.bool_)
        is_one[some] = True
        ordered: SlotArray = self.slots[is_one[self.slots]]
        return ordered

    @property
    def promised_blocks(self) -> int:
        """Blocks that running prefills will still claim for tokens already known."""
        if not self.prefilling:
            return 0
        table = self.table
        missing = (
            self.blocks_for(int(table.num_tokens[slot])) - int(table.num_blocks[slot])
            for slot in self.prefilling
        )
        return sum(max(count, 0) for count in missing)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def missing_blocks(self, slots: SlotArray, num_new: int | Int32Array) -> Int32Array:
        """Blocks each row lacks to hold ``num_new`` more tokens (of all rows, or of each)."""
        # ``overhang`` is minus the row's room; adding block_size - 1 makes the division round up.
        lacking = self.table.overhang[slots] + np.int32(num_new + self.block_size - 1)
        missing: Int32Array = np.maximum(lacking // np.int32(self.block_size), 0)
        return missing

    def has_blocks_for(self, num_steps: int) -> bool:
        """Whether there are so many free blocks for ``num_steps`` of all rows that none need be
        counted."""
        return self.pool.can_allocate(len(self) * (self.blocks_for(num_steps) + 1))

    def steps_within_blocks(self, limit: int) -> int:
        """Most decode steps of all rows, up to ``limit``, whose new blocks are free."""
        # More steps never need fewer blocks, so the answer can be found by halving.
        low, high = 0, max(limit, 0)
        if self.has_blocks_for(high):
            return high
        while low < high:
            middle = (low + high + 1) // 2
            missing = self.missing_blocks(self.slots, middle)
            fits = self.pool.can_allocate(int(missing.sum()))
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def check_integrity(self) -> None:
        """Assert that KV blocks, slots and lengths balance; cheap enough for every test."""
        table, slots = self.table, self.slots
        sequences = table.list_sequences(slots)
        assert [s.slot for s in sequences] == slots.tolist(), "slots and sequences differ"
        assert table.num_free_slots + len(self) == table.num_slots, "a slot is lost"
        self.pool.check_integrity(table.held_blocks(int(slot)) for slot in slots)
        assert np.all(table.num_computed[slots] <= table.num_tokens[slots]), "beyond known tokens"
        prefilling = set(slots[self.pending > 1].tolist())
        assert prefilling == self.prefilling, "the books of prefilling rows are wrong"
        assert np.all(table.num_known[slots] <= table.num_tokens[slots]), "known beyond expected"
        assert np.all(table.in_flight[slots] >= 0), "a row left more steps than it entered"
        assert np.all(table.in_flight[slots] > 0, where=table.is_ended[slots]), "an ended row stays"
        capacity = table.num_blocks[slots] * self.block_size
        overhang = table.num_computed[slots] - capacity
        assert np.all(overhang <= 0), "KV tokens without a block"
        assert np.array_equal(overhang, table.overhang[slots]), "the books of room are wrong"

    def looks_up(self, sequence: Sequence) -> bool:
        """Whether the beginning of a sequence is looked for among cached blocks. Of one that asks
        for log probabilities of its prompt it is not: the prompt must be computed for them.
        """
        return self._hasher is not None and sequence.request.sampling.prompt_logprobs is None

    def find_cached(self, sequence: Sequence) -> Int32Array:
        """Cached blocks with the beginning of a waiting sequence, but never with its last token:
        that one must be computed to know the next.
        """
        if not self.looks_up(sequence):
            return NO_BLOCKS
        self._extend_chain(sequence, sequence.num_tokens)
        assert sequence.chain is not None, "the line above made it"
        most = min(sequence.num_tokens - 1, sequence.num_ids) // self.block_size
        return self.pool.find_prefix(sequence.chain.digests[:most])

    def num_free_beside(self, cached: Int32Array) -> int:
        """Free blocks left once ``cached`` are in use and running prefills have got theirs."""
        return self.pool.free_after_sharing(cached) - self.promised_blocks

    def place(self, sequence: Sequence) -> PlacedSequence:
        """Give a waiting sequence a row, with the cached blocks of its beginning."""
        cached = self.find_cached(sequence)
        self.pool.share(cached)
        num_cached = len(cached) * self.block_size
        slot = self.table.place(sequence, cached, num_cached)
        sequence.num_published = len(cached)
        if sequence.num_tokens - num_cached > 1:
            self.prefilling.add(slot)
        self.slots = np.concatenate((self.slots, (slot,)))
        return PlacedSequence(
            sequence=sequence,
            slot=slot,
            num_tokens=sequence.num_tokens,
            num_cached=num_cached,
            blocks=cached,
        )

    def drop(self, sequence: Sequence) -> None:
        """Free the row and the blocks of a sequence; what they hold stays findable."""
        slot = sequence.slot
        if self._hasher is not None:
            # The last known token was sampled. If it was computed at all, that was in a step that
            # wrongly assumed that the sequence goes on.
            written = min(self.table.num_computed[slot], self.table.num_known[slot] - 1)
            self.publish(sequence, int(written))
        self.slots = self.slots[self.slots != slot]
        self.prefilling.discard(slot)
        self.pool.free(self.table.remove(sequence))

    def drop_all(self) -> list[Sequence]:
        """Free every row and block at once, when the KV content is gone; returns the sequences."""
        everyone = self.table.list_sequences(self.slots)
        self.slots = np.empty(0, np.intp)
        self.prefilling.clear()
        for sequence in everyone:
            self.pool.free(self.table.remove(sequence))
        self.pool.forget_prefixes()
        return everyone

    def publish(self, sequence: Sequence, num_written: int) -> None:
        """Let others find the full blocks among the first ``num_written`` computed tokens."""
        if self._hasher is None or sequence.has_failed:
            return
        # Blocks of unknown content (simulated outputs) have no name to be found by.
        num_named = min(num_written, sequence.num_ids)
        first, last = sequence.num_published, num_named // self.block_size
        if last <= first:
            return
        self._extend_chain(sequence, last * self.block_size)
        assert sequence.chain is not None, "the line above made it"
        held = self.table.held_blocks(sequence.slot)
        self.pool.publish(held[first:last].tolist(), sequence.chain.digests[first:last])
        sequence.num_published = last

    def end_prefill(self, slot: int) -> None:
        """Let the row decode from here on if it lacks no more than its next token."""
        if self.table.num_tokens[slot] - self.table.num_computed[slot] <= 1:
            self.prefilling.discard(slot)

    def compute(self, slot: int, num_tokens: int, *, is_whole: bool) -> None:
        """Note that ``num_tokens`` more of a row's prompt are in the cache, where others may find
        them. ``is_whole``: the row's next token is then known, too.
        """
        table = self.table
        table.num_computed[slot] += num_tokens
        table.overhang[slot] += num_tokens
        table.num_tokens[slot] += is_whole
        table.num_known[slot] += is_whole
        self.end_prefill(slot)
        sequence = table.sequences[slot]
        assert sequence is not None, "the row of a chunk is held"
        self.publish(sequence, int(table.num_computed[slot]))

    def _extend_chain(self, sequence: Sequence, num_tokens: int) -> None:
        assert self._hasher is not None, "only with prefix reuse"
        if sequence.chain is None:
            # Half a surrogate pair is no text, and must not end the loop that all others run in.
            salt = sequence.request.cache_salt.encode(errors="surrogatepass")
            sequence.chain = PrefixChain(self._hasher, salt=salt)
        sequence.chain.extend_to(min(num_tokens, sequence.num_ids), sequence.token_slice)

    def find_room(self, slot: int, num_new: int) -> int | None:
        """Blocks that one row lacks to hold ``num_new`` more tokens; None: they are not free."""
        beyond = num_new + int(self.table.overhang[slot])
        missing = self.blocks_for(beyond) if beyond > 0 else 0
        return missing if self.pool.can_allocate(missing) else None

    def grow_row(self, slot: int, num_blocks: int) -> Int32Array:
        """Give one row ``num_blocks`` more blocks, returned as i4; the caller has made room."""
        if not num_blocks:
            return NO_BLOCKS
        held = int(self.table.num_blocks[slot])
        blocks = self.pool.allocate(num_blocks)
        self.table.blocks[slot, held : held + num_blocks] = blocks
        self.table.num_blocks[slot] = held + num_blocks
        self.table.overhang[slot] -= num_blocks * self.block_size
        return blocks

    def grow_by_one(self, slots: SlotArray) -> GrownBlocks:
        """Give a block to each row that has no room for its next token; the caller has made room.
        Returns these rows and their new blocks.
        """
        table = self.table
        full = slots[table.overhang[slots] == 0]
        if not len(full):
            return full, NO_BLOCKS
        held = table.num_blocks[full]
        blocks = self.pool.allocate(len(full))
        table.blocks[full, held] = blocks
        table.num_blocks[full] = held + 1
        table.overhang[full] = -self.block_size
        return full, blocks

    def grow(self, slots: SlotArray, num_new: int | Int32Array) -> None:
        """Give rows the blocks for ``num_new`` more tokens (each, or one number per row); the
        caller has made room. It returns no blocks, because no rank computes here.
        """
        table = self.table
        missing = self.missing_blocks(slots, num_new)
        growing = missing.nonzero()[0]
        if not len(growing):
            return
        rows, counts = slots[growing], missing[growing]
        places = table.num_blocks[rows]
        table.num_blocks[rows] = places + counts
        table.overhang[rows] -= counts * np.int32(self.block_size)
        blocks = self.pool.allocate(int(counts.sum()))
        if len(blocks) > len(rows):
            # Several per row: each in the place after the one before. A row's blocks are those from
            # begins[row] on, so the n-th of all has place n - begins[row] after the row's first.
            begins = counts.cumsum() - counts
            places = np.arange(len(blocks)) + (places - begins).repeat(counts)
            rows = rows.repeat(counts)
        table.blocks[rows, places] = blocks

    def advance(self, num_steps: int | Int32Array) -> None:
        """Add one token per row and step, for ``num_steps`` of all rows or of each; the caller
        knows that the blocks are free.
        """
        self.grow(self.slots, num_steps)
        self.table.counts[:, self.slots] += np.int32(num_steps)
