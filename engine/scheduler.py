"""The scheduler: waiting and running sequences become steps. The simulator runs this same code.

One step holds the decodes first, then chunks of running prefills, then newly admitted prompts,
under a token budget (continuous batching with chunked prefill). When KV blocks run out, the
sequence admitted last is preempted and later recomputed from its tokens.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engine.config import Caps
from engine.errors import QueueFullError, RequestError
from engine.pace import StepPace
from engine.plan import Mode
from engine.policy import Order
from engine.request import FinishReason, Request
from engine.running import RunningSet, SlotArray
from engine.scheduled import (
    UNKNOWN_TOKEN,
    ScheduledStep,
    StepBudget,
    StepOutcome,
    step_shape,
)
from engine.sequences import NO_SLOT, Sequence, SequenceTable
from engine.shift import ModeChooser
from engine.steps import Int32Array, StepShape


class Scheduler:
    """Turns requests into steps and results into sequence state. Not thread safe.

    Up to ``depth`` steps may be outstanding (one per pipeline stage); they are committed in
    order, and a sequence is never in two of them.
    """

    def __init__(
        self,
        *,
        caps: Caps,
        envelope: Caps,
        chooser: ModeChooser,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        depth: int = 1,
        order: Order = Order.FCFS,
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        self.caps = caps
        self.chooser = chooser
        self.order = order
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.depth = depth
        self.pace = StepPace()
        self.num_preemptions = 0
        self.next_step_id = 0
        self._eos = frozenset(eos_token_ids)
        self._running = RunningSet(
            num_slots=envelope.max_num_seqs,
            num_blocks=num_blocks,
            block_size=block_size,
            max_blocks=-(-max_model_len // block_size),
        )
        self._waiting: deque[Sequence] = deque()
        self._outstanding: deque[ScheduledStep] = deque()
        self._rotation = 0
        self._load_tokens = 0

    # -- questions ---------------------------------------------------------------------------

    @property
    def table(self) -> SequenceTable:
        return self._running.table

    @property
    def load_tokens(self) -> int:
        """Tokens that accepted requests may still grow to; what a router balances."""
        return self._load_tokens

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_outstanding(self) -> int:
        return len(self._outstanding)

    @property
    def is_idle(self) -> bool:
        return not len(self._running) and not self._waiting

    @property
    def kv_usage(self) -> float:
        return self._running.pool.usage

    def check_integrity(self) -> None:
        """Assert that KV blocks, slots and lengths balance."""
        self._running.check_integrity()

    def check_request(self, request: Request) -> None:
        """Refuse a request that could never run.

        Raises:
            RequestError: longer than the context or the whole KV cache, with the numbers.
        """
        if request.max_len > self.max_model_len:
            raise RequestError(
                f"request {request.request_id}: {len(request.prompt_ids)} prompt tokens plus "
                f"max_tokens {request.sampling.max_tokens} is more than the context of "
                f"{self.max_model_len}; shorten the prompt or lower max_tokens"
            )
        blocks, held = self._running.blocks_for(request.max_len), self._running.pool.num_blocks
        if blocks > held:
            raise RequestError(
                f"request {request.request_id}: up to {request.max_len} tokens need {blocks} KV "
                f"blocks, this engine has {held}; raise the KV cache size"
            )

    # -- commands ----------------------------------------------------------------------------

    def add(self, request: Request, *, is_admitted: bool = False) -> Sequence:
        """Queue a request; ``is_admitted``: the front door has held it to the limit already.

        Raises:
            RequestError: it could never run.
            QueueFullError: ``caps.max_queue`` requests wait already.
        """
        self.check_request(request)
        limit = self.caps.max_queue
        if not is_admitted and limit is not None and len(self._waiting) >= limit:
            raise QueueFullError(f"{len(self._waiting)} requests wait, max_queue is {limit}")
        sequence = Sequence.of(request)
        self._waiting.append(sequence)
        self._load_tokens += request.max_len
        return sequence

    def adopt(self, sequences: list[Sequence]) -> None:
        """Queue sequences of another scheduler with their tokens so far, ahead of others."""
        self._waiting.extendleft(reversed(sequences))
        self._load_tokens += sum(s.request.max_len for s in sequences)

    def release(self) -> list[Sequence]:
        """Take every sequence out (running first, in order), for another scheduler to adopt."""
        assert not self._outstanding, "steps are in flight"
        everyone = [*self._running.sequences, *self._waiting]
        for sequence in list(self._running.sequences):
            self._running.drop(sequence)
        self._waiting.clear()
        self._load_tokens = 0
        return everyone

    def discard_outstanding(self) -> None:
        """Forget steps in flight whose ranks are gone; their tokens are computed again."""
        for step in self._outstanding:
            self.table.in_flight[step.slots] = False
            self._drop_aborted(step)
        self._outstanding.clear()

    def abort(self, request_id: str) -> Sequence | None:
        """Drop a request. In flight, it is dropped when its step is committed."""
        everyone = (*self._waiting, *self._running.sequences)
        sequence = next((s for s in everyone if s.request_id == request_id), None)
        if sequence is None:
            return None
        if sequence.slot == NO_SLOT:
            self._waiting.remove(sequence)
            self._load_tokens -= sequence.request.max_len
        elif self.table.in_flight[sequence.slot]:
            sequence.is_aborted = True
        else:
            self._end(sequence)
        return sequence

    def schedule(self) -> ScheduledStep | None:
        """The next step, or None while nothing can run (idle, or all sequences in flight)."""
        if len(self._outstanding) >= self.depth or self.is_idle:
            return None
        budget = StepBudget(tokens=self.caps.max_num_batched_tokens)
        self._schedule_decodes(budget)
        self._schedule_prefills(budget)
        if not budget.has_preempted:
            self._admit(budget)
        if not budget.slots:
            return None
        step = self._build_step(budget)
        self.table.in_flight[step.slots] = True
        self._outstanding.append(step)
        self.next_step_id += 1
        return step

    def commit(self, step: ScheduledStep, token_ids: Int32Array | None) -> StepOutcome:
        """Take in the result of the oldest outstanding step.

        ``token_ids`` i4[R] in row order of the sampled rows; None in simulation, where only
        length limits end a sequence.
        """
        oldest = self._outstanding.popleft() if self._outstanding else None
        assert oldest is step, "steps commit in order"
        table, slots = self.table, step.slots
        table.in_flight[slots] = False
        table.num_computed[slots] += step.query_lens
        sampled_slots = slots[step.is_sampled]
        table.num_tokens[sampled_slots] += 1
        if token_ids is not None:
            table.last_token[sampled_slots] = token_ids
        outcome = StepOutcome()
        self._collect_outcome(step, token_ids, outcome)
        self._drop_aborted(step)
        return outcome

    # -- time skipping -----------------------------------------------------------------------

    def quiet_steps(self) -> int:
        """Decode steps that will pass before anything but lengths changes; 0 = none.

        Within them no sequence is admitted, finished or preempted and the mode stays, so each
        is the step before with one more token per sequence.
        """
        running = self._running
        is_steady = (
            len(running) > 0
            and self.depth == 1
            and not self._outstanding
            and not self.chooser.pin.startswith("random")
            and len(running) <= self.caps.max_num_batched_tokens
        )
        if not is_steady or self._can_admit_next() or np.any(running.pending != 1):
            return 0
        left = running.table.max_len[running.slots] - running.table.num_tokens[running.slots]
        return running.steps_within_blocks(int(left.min()) - 1)

    def quiet_shape(self) -> StepShape:
        """Shape of the next quiet step; each later one adds ``num_seqs`` context tokens."""
        slots = self._running.slots
        context = int(self.table.num_computed[slots].sum()) + len(slots)
        return StepShape(
            mode=self.chooser.choose(len(slots), self.next_step_id),
            num_seqs=len(slots),
            num_decode_tokens=len(slots),
            decode_context_tokens=context,
            num_sampled=len(slots),
        )

    def advance(self, num_steps: int) -> None:
        """Commit ``num_steps`` quiet decode steps in bulk: one token per sequence and step."""
        assert 0 <= num_steps <= self.quiet_steps(), f"{num_steps} steps are not all quiet"
        self._running.advance(num_steps)
        self.next_step_id += num_steps

    # -- one step ----------------------------------------------------------------------------

    def _schedule_decodes(self, budget: StepBudget) -> None:
        """Rows with exactly one token to compute; every one unless the budget is smaller."""
        running = self._running
        ready = running.slots[(running.pending == 1) & ~running.in_flight]
        limit = min(budget.tokens, self._share_of_running())
        if len(ready) > limit:
            # Rotate, so that a budget below the running count starves nobody.
            ready = np.roll(ready, -(self._rotation % len(ready)))[:limit]
            self._rotation += limit
        ready = self._make_room_for_decodes(ready, budget)
        running.grow(ready, 1)
        budget.take_many(ready)

    def _share_of_running(self) -> int:
        """With several steps in flight, each takes its share of the running set."""
        return max(1, -(-len(self._running) // self.depth))

    def _make_room_for_decodes(self, ready: SlotArray, budget: StepBudget) -> SlotArray:
        """Preempt from the back until every remaining row can hold one more token."""
        while len(ready):
            missing = self._running.missing_blocks(ready, 1)
            if self._running.pool.can_allocate(int(missing.sum())):
                break
            victim = self._preempt_last(budget, keep=None)
            if victim is None:
                # Only sequences in flight are left to preempt: run those that fit.
                return ready[np.cumsum(missing) <= self._running.pool.num_free]
            ready = ready[ready != victim]
        return ready

    def _schedule_prefills(self, budget: StepBudget) -> None:
        running = self._running
        is_ready = (running.pending > 1) & ~running.in_flight
        for slot, left in zip(running.slots[is_ready], running.pending[is_ready], strict=True):
            chunk = min(int(left), self._prefill_room(budget))
            if chunk < 1:
                return
            if self.table.sequences[slot] is None:  # preempted for an earlier one in this loop
                continue
            rows = np.array([slot], np.intp)
            if self._make_room(rows, chunk, budget):
                running.grow(rows, chunk)
                budget.take(int(slot), chunk)

    def _make_room(self, rows: SlotArray, num_tokens: int, budget: StepBudget) -> bool:
        """Free blocks for a running prefill by preempting sequences admitted after it."""
        while not self._running.can_grow(rows, num_tokens):
            if self._preempt_last(budget, keep=int(rows[0])) is None:
                return False
        return True

    def _admit(self, budget: StepBudget) -> None:
        """Start waiting requests while tokens, sequences and KV blocks allow."""
        while self._can_admit_next():
            sequence = self._next_waiting()
            chunk = min(sequence.num_tokens, self._prefill_room(budget))
            if chunk < 1:
                return
            self._waiting.remove(sequence)
            slot = self._running.place(sequence)
            self._running.grow(np.array([slot], np.intp), chunk)
            budget.take(slot, chunk)

    def _can_admit_next(self) -> bool:
        if not self._waiting or len(self._running) >= self.caps.max_num_seqs:
            return False
        need = self._running.blocks_for(self._next_waiting().num_tokens)
        return need <= self._running.pool.num_free - self._running.promised_blocks

    def _next_waiting(self) -> Sequence:
        first = self._waiting[0]
        if self.order is Order.FCFS or first.num_preemptions:
            return first
        return min(self._waiting, key=lambda s: (-s.num_preemptions, s.num_tokens))

    def _prefill_room(self, budget: StepBudget) -> int:
        """Tokens that prefill chunks may still add to this step."""
        room = budget.tokens
        if self.caps.max_step_ms is not None:
            mode = self.chooser.choose(budget.used + room, self.next_step_id)
            fitting = self.pace.max_tokens(mode, self.caps.max_step_ms)
            if fitting is not None:
                # One block of prompt always moves on, else a tight cap would starve prefills.
                floor = self.block_size if not budget.prefill_tokens else 0
                room = min(room, max(fitting - budget.used, floor))
        return room

    def _build_step(self, budget: StepBudget) -> ScheduledStep:
        table = self.table
        slots = np.array(budget.slots, np.intp)
        query_lens = np.array(budget.query_lens, np.int32)
        context_lens = table.num_computed[slots]
        is_sampled = context_lens + query_lens == table.num_tokens[slots]
        shape = step_shape(query_lens, context_lens, int(is_sampled.sum()), self._mode(budget))
        sequences = [s for slot in budget.slots if (s := table.sequences[slot]) is not None]
        return ScheduledStep(
            step_id=self.next_step_id,
            shape=shape,
            slots=slots,
            query_lens=query_lens,
            context_lens=context_lens,
            is_sampled=is_sampled,
            sequences=sequences,
        )

    def _mode(self, budget: StepBudget) -> Mode:
        return self.chooser.choose(budget.used, self.next_step_id)

    def _preempt_last(self, budget: StepBudget, keep: int | None) -> int | None:
        """Preempt the sequence admitted last that is not in flight or in this step already.

        With ``keep``, only sequences admitted after that slot may go. Returns the slot freed.
        """
        for sequence in reversed(self._running.sequences):
            slot = sequence.slot
            if slot == keep:
                return None
            if not self.table.in_flight[slot] and slot not in budget.slots:
                self._running.drop(sequence)
                sequence.num_preemptions += 1
                self.num_preemptions += 1
                budget.has_preempted = True
                self._waiting.appendleft(sequence)
                return slot
        return None

    def _collect_outcome(
        self, step: ScheduledStep, token_ids: Int32Array | None, outcome: StepOutcome
    ) -> None:
        lengths = self.table.num_tokens[step.slots]
        is_full = lengths >= self.table.max_len[step.slots]
        rows = np.flatnonzero(step.is_sampled)
        ids = token_ids.tolist() if token_ids is not None else None
        for nth, row in enumerate(rows.tolist()):
            sequence = step.sequences[row]
            if sequence.is_aborted:
                continue
            token_id, reason = UNKNOWN_TOKEN, None
            if ids is not None:
                token_id = ids[nth]
                sequence.output_ids.append(token_id)
                reason = sequence.finish_reason(token_id, int(lengths[row]), self._eos)
            if reason is None and is_full[row]:
                reason = FinishReason.LENGTH
            outcome.sampled.append((sequence, token_id))
            if reason is not None:
                outcome.finished.append((sequence, reason))
                self._end(sequence)

    def _drop_aborted(self, step: ScheduledStep) -> None:
        for sequence in step.sequences:
            if sequence.is_aborted and sequence.slot != NO_SLOT:
                self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        self._running.drop(sequence)
        self._load_tokens -= sequence.request.max_len
