"""Which rows the next step holds: decodes first, then chunks of prompts, then new requests; or, as
other systems do, prompts alone before any decode.

Also how much of a prompt a step may take to keep within its time in the mode it will run in.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np

from engine.modes.chooser import ModeChooser
from engine.modes.pace import MAX_STEP_TOKENS, StepPace
from engine.scheduler.queue import WaitingQueue
from engine.scheduler.rows import RunningSet
from engine.scheduler.step import PackedChunk, PackedRows, ScheduledStep, SlotArray, shape_of
from engine.scheduler.table import Sequence
from engine.spec.modes import Mode
from engine.spec.settings import Caps, Order, StepOrder
from engine.spec.steps import StepShape


class StepPacker:
    """Packs steps under a token budget (continuous batching with chunked prefill).

    When KV blocks run out, the sequence that is last in the order is preempted and later
    recomputed from its tokens. ``depth`` steps share the running set, one per pipeline stage.
    ``step_order`` is ``MIXED`` in this engine; simulations of other systems have theirs.
    """

    def __init__(
        self,
        running: RunningSet,
        waiting: WaitingQueue,
        *,
        caps: Caps,
        chooser: ModeChooser,
        depth: int,
        step_order: StepOrder = StepOrder.MIXED,
    ) -> None:
        self.caps = caps
        self.chooser = chooser
        self.pace = StepPace()
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._running = running
        self._waiting = waiting
        self._depth = depth
        self._step_order = step_order
        self._rotation = 0

    def pack(self, step_id: int, eligible: SlotArray) -> PackedRows:
        """The next step's rows, from the running rows in ``eligible`` and the waiting requests. It
        gives them their KV blocks, and may preempt others for that.
        """
        packed = PackedRows(tokens=self.caps.max_num_batched_tokens, step_id=step_id)
        decodes, prefills = self._split(eligible)
        match self._step_order:
            case StepOrder.MIXED:
                self._take_decodes(packed, decodes)
                self._take_prompts(packed, prefills)
            case StepOrder.PREFILL_FIRST:
                self._take_prompts(packed, prefills)
                if not packed.num_rows:
                    self._take_decodes(packed, decodes)
            case _:
                assert_never(self._step_order)
        if packed.num_rows:
            packed.shape = self.shape(packed)
        self._waiting.pass_over()
        return packed

    def pack_ahead(self, step_id: int, eligible: SlotArray) -> PackedRows | None:
        """Like :meth:`pack` while the step before still runs; None where KV blocks are short.

        Running rows cannot be preempted, and some may end with that step and free their blocks.
        """
        decodes, _ = self._split(eligible)
        missing = self._running.missing_blocks(decodes, 1)
        if not self._running.pool.can_allocate(int(missing.sum())):
            return None
        return self.pack(step_id, eligible)

    def build(self, packed: PackedRows) -> ScheduledStep:
        """The packed rows, with their lengths and blocks, as a step."""
        table, first_chunk = self._running.table, len(packed.decodes)
        slots, query_lens = packed.decodes, np.ones(packed.num_rows, np.int32)
        # A row is sampled if its last known token is in the step: always in decodes, in some
        # chunks.
        is_sampled = np.ones(packed.num_rows, np.bool_)
        if packed.chunks:
            slots = np.concatenate((slots, [chunk.slot for chunk in packed.chunks]))
            query_lens[first_chunk:] = [chunk.num_tokens for chunk in packed.chunks]
            is_sampled[first_chunk:] = [chunk.is_whole for chunk in packed.chunks]
        return ScheduledStep(
            step_id=packed.step_id,
            shape=packed.shape,
            slots=slots,
            query_lens=query_lens,
            context_lens=table.num_computed[slots],
            is_sampled=is_sampled,
            first_chunk=first_chunk,
            sequences=table.list_sequences(slots),
            placed=packed.placed,
            grown=packed.grown,
        )

    def shape(self, packed: PackedRows) -> StepShape:
        """The size of the packed rows, and the mode they will run in."""
        num_decodes = len(packed.decodes)
        return shape_of(
            num_decodes=num_decodes,
            cached=int(np.add.reduce(self._running.table.num_computed[packed.decodes])),
            chunks=[(chunk.num_tokens, chunk.num_before) for chunk in packed.chunks],
            num_sampled=num_decodes + sum(chunk.is_whole for chunk in packed.chunks),
            mode=self.chooser.choose(packed.used, packed.step_id),
        )

    def can_admit(self) -> bool:
        """Whether the next waiting request has a row and KV blocks."""
        if not self._waiting or len(self._running) >= self.caps.max_num_seqs:
            return False
        sequence = self._waiting.peek()
        assert sequence is not None, "somebody waits"
        cached = self._running.find_cached(sequence)
        need = self._running.blocks_for(sequence.num_tokens) - len(cached)
        return need <= self._running.num_free_beside(cached)

    def _split(self, eligible: SlotArray) -> tuple[SlotArray, list[int]]:
        """Rows that lack one token only, and those with more of their prompt to compute."""
        prefilling = self._running.prefilling
        if not prefilling:
            return eligible, []
        is_decode = np.ones(len(eligible), np.bool_)
        for slot in prefilling:  # they are few, so this is cheaper than to compare all lengths
            is_decode &= eligible != slot
        return eligible[is_decode], eligible[~is_decode].tolist()

    def _take_decodes(self, packed: PackedRows, ready: SlotArray) -> None:
        """Rows with exactly one token to compute; every one unless the budget is smaller."""
        limit = min(packed.tokens, self.share_of_running)
        if len(ready) > limit:
            # Rotate, so that a budget below the running count starves nobody.
            ready = np.roll(ready, -(self._rotation % len(ready)))[:limit]
            self._rotation += limit
        if len(ready):
            ready = self._make_room_for_decodes(packed, ready)
            packed.take_decodes(ready, self._running.grow_by_one(ready))

    @property
    def share_of_running(self) -> int:
        """With several steps in flight, each takes its share of the running set."""
        return max(1, -(-len(self._running) // self._depth))

    def _make_room_for_decodes(self, packed: PackedRows, ready: SlotArray) -> SlotArray:
        """Preempt from the back until every remaining row can hold one more token."""
        pool = self._running.pool
        # No row lacks more than one block for one token, so mostly nothing need be counted.
        while not pool.can_allocate(len(ready)):
            missing = self._running.missing_blocks(ready, 1)
            if pool.can_allocate(int(missing.sum())):
                break
            victim = self._preempt_last(packed, keep=None)
            if victim is None:
                # Only sequences in flight are left, which cannot be preempted: run the first rows,
                # as many as the running sum of their missing blocks allows.
                return ready[np.cumsum(missing) <= pool.num_free]
            ready = ready[ready != victim]
        return ready

    def _take_prompts(self, packed: PackedRows, ready: list[int]) -> None:
        self._take_prefills(packed, ready)
        if not packed.has_preempted:
            self._admit(packed)

    def _take_prefills(self, packed: PackedRows, ready: list[int]) -> None:
        running, table = self._running, self._running.table
        for slot in ready:
            before = int(table.num_computed[slot])
            left = int(table.num_tokens[slot]) - before
            num_tokens = min(left, self._prefill_room(packed))
            if num_tokens < 1:
                return
            if table.sequences[slot] is None:  # preempted for an earlier one in this loop
                continue
            missing = self._make_room(packed, slot, num_tokens)
            if missing is not None:
                chunk = PackedChunk(slot, num_tokens, before, num_tokens == left)
                packed.take_chunk(chunk, running.grow_row(slot, missing))

    def _make_room(self, packed: PackedRows, slot: int, num_tokens: int) -> int | None:
        """Preempt sequences behind a running prefill until its blocks are free. Returns the number
        of blocks it lacks; None where there is no room.
        """
        while (missing := self._running.find_room(slot, num_tokens)) is None:
            if self._preempt_last(packed, keep=slot) is None:
                return None
        return missing

    def _admit(self, packed: PackedRows) -> None:
        """Start waiting requests while tokens, sequences and KV blocks allow."""
        while (room := self._prefill_room(packed)) >= 1 and self.can_admit():
            placed = self._running.place(self._waiting.pop())
            slot, left = placed.slot, placed.num_tokens - placed.num_cached
            num_tokens = min(left, room)
            missing = self._running.find_room(slot, num_tokens)
            assert missing is not None, "admission has counted its blocks"
            packed.placed.append(placed)
            self.num_prefix_queries += placed.num_tokens
            self.num_prefix_hits += placed.num_cached
            chunk = PackedChunk(slot, num_tokens, placed.num_cached, num_tokens == left)
            packed.take_chunk(chunk, self._running.grow_row(slot, missing))

    def _prefill_room(self, packed: PackedRows) -> int:
        """Tokens that prefill chunks may still add to this step."""
        return prefill_room(
            used=packed.used,
            prefill_tokens=packed.prefill_tokens,
            budget=packed.tokens,
            max_step_ms=self.caps.max_step_ms,
            block_size=self._running.block_size,
            chooser=self.chooser,
            pace=self.pace,
            step_id=packed.step_id,
        )

    def _preempt_last(self, packed: PackedRows, keep: int | None) -> int | None:
        """Preempt the last sequence in the order that is not in flight or in this step already.

        With ``keep``, only sequences behind that slot may go. Returns the slot freed.
        """
        for sequence in self._from_the_back():
            slot = sequence.slot
            if slot == keep:
                return None
            if not self._running.table.in_flight[slot] and not packed.holds(slot):
                self._running.drop(sequence)
                sequence.num_preemptions += 1
                self.num_preemptions += 1
                packed.has_preempted = True
                self._waiting.push_carried([sequence])
                return slot
        return None

    def _from_the_back(self) -> list[Sequence]:
        """Running sequences in the order in which they would be preempted."""
        last_first = self._running.table.list_sequences(self._running.slots[::-1])
        if self._waiting.order is Order.PRIORITY:
            return sorted(last_first, key=lambda s: -s.request.priority)
        return last_first


def prefill_room(
    *,
    used: int,
    prefill_tokens: int,
    budget: int,
    max_step_ms: float | None,
    block_size: int,
    chooser: ModeChooser,
    pace: StepPace,
    step_id: int,
) -> int:
    """Most tokens that prefill chunks may still add to a step that holds ``used`` already.

    ``prefill_tokens`` of those are of prompts; ``budget`` tokens are left of the step's own cap.
    One more chunk may change the mode of the whole step. A step that would take longer than
    ``max_step_ms`` in one mode is therefore kept to what runs in another. Every step computes at
    least one block of a prompt, or a tight cap would starve prefills. If a whole block would turn
    the step to a mode with more slices, it computes only the part that stays in the mode with
    fewer.
    """
    budget = max(budget, 0)
    if max_step_ms is None:
        return budget
    limits = {mode: _limit(mode, max_step_ms, chooser, pace) for mode in chooser.modes}
    largest = max(
        chooser.largest_tokens(mode, min(used + budget, limit), step_id)
        for mode, limit in limits.items()
    )
    floor = 0 if prefill_tokens else _floor(used, min(block_size, budget), chooser, step_id)
    return max(largest - used, floor)


def _limit(mode: Mode, max_step_ms: float, chooser: ModeChooser, pace: StepPace) -> int:
    """Tokens that fit the time in ``mode``, by its recent steps, else by the mode table, else by
    recent steps of another mode.
    """
    limit = pace.max_tokens(mode, max_step_ms)
    if limit is None and chooser.table is not None:
        limit = chooser.table.max_tokens(mode, max_step_ms)
    if limit is None:
        seen = (pace.max_tokens(other, max_step_ms) for other in chooser.modes)
        limit = next((tokens for tokens in seen if tokens is not None), None)
    return MAX_STEP_TOKENS if limit is None else max(limit, 0)


def _floor(used: int, block: int, chooser: ModeChooser, step_id: int) -> int:
    parts = (
        chooser.largest_tokens(mode, used + block, step_id) - used
        for mode in reversed(chooser.modes)
    )
    return next((part for part in parts if part > 0), block)
