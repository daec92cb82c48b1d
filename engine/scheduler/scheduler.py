"""The scheduler: waiting and running sequences become steps. The simulator runs this same code.

``engine.scheduler.packing`` chooses a step's rows; this file keeps what steps in flight will have
done, and takes their results in. Verbs for virtual time are in ``engine.scheduler.skipping``.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engine.modes.chooser import ModeChooser
from engine.scheduler.load import LoadBook
from engine.scheduler.packing import StepPacker
from engine.scheduler.queue import WaitingQueue
from engine.scheduler.roster import Roster
from engine.scheduler.rows import RunningSet
from engine.scheduler.step import (
    PackedRows,
    ScheduledStep,
    SchedulerCounts,
    SlotArray,
    StepOutcome,
)
from engine.scheduler.table import NO_SLOT, Sequence
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.request import FinishReason, Request, check_length
from engine.spec.settings import Caps, Order, StepOrder
from engine.spec.steps import NO_TOKEN, Int32Array


class Scheduler:
    """Turns requests into steps and results into sequence state. Not thread safe.

    The idea in a sentence: a sequence's computed tokens catch up with its tokens; prefill and
    decode are the same thing. A step computes tokens that are still missing, as many as fit, and
    the last of them brings the next token.

    Up to ``depth`` steps run at once (one per pipeline stage), and one more may be scheduled
    ahead of them, on the assumption that no sequence stops. Steps are committed in order.

    To know more, ask the parts: ``running`` (rows and KV blocks), ``waiting`` (the queue),
    ``packer`` (caps, mode, pace of steps), ``roster`` (all living sequences). Only the scheduler
    gives them commands; but step times go to ``packer.pace``.
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
        step_order: StepOrder = StepOrder.MIXED,
        eos_token_ids: tuple[int, ...] = (),
        keeps_prefixes: bool = False,
        load: LoadBook | None = None,
    ) -> None:
        self.depth = depth
        self.next_step_id = 0
        self.running = RunningSet(
            num_slots=envelope.max_num_seqs,
            num_blocks=num_blocks,
            block_size=block_size,
            max_blocks=-(-max_model_len // block_size),
            keeps_prefixes=keeps_prefixes,
        )
        self.waiting = WaitingQueue(order)
        self.packer = StepPacker(
            self.running,
            self.waiting,
            caps=caps,
            chooser=chooser,
            depth=depth,
            step_order=step_order,
        )
        self.roster = Roster(eos_token_ids, load or LoadBook())
        self._max_model_len = max_model_len
        self._outstanding: deque[ScheduledStep] = deque()
        # Rows that have ended and wait for the steps in flight that hold them.
        self._num_ending = 0

    # -- questions ---------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def is_idle(self) -> bool:
        return not len(self.running) and not len(self.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0..1."""
        return self.running.pool.usage

    @property
    def counts(self) -> SchedulerCounts:
        """Preemptions and use of the prefix cache so far."""
        return SchedulerCounts(
            preemptions=self.packer.num_preemptions,
            prefix_queries=self.packer.num_prefix_queries,
            prefix_hits=self.packer.num_prefix_hits,
        )

    def check_request(self, request: Request) -> None:
        """Refuse a request that could never run.

        Raises:
            RequestError: longer than the context or the whole KV cache, with the numbers.
        """
        check_length(request, self._max_model_len)
        blocks, held = self.running.blocks_for(request.max_len), self.running.pool.num_blocks
        if blocks > held:
            raise RequestError(
                f"request {request.request_id}: up to {request.max_len} tokens need {blocks} KV "
                f"blocks, this engine has {held}; raise the KV cache size"
            )

    def check_integrity(self) -> None:
        """Assert that KV blocks, slots and lengths balance, and that nobody is lost."""
        self.running.check_integrity()
        slots = self.running.slots[~self.running.table.is_ended[self.running.slots]]
        here = [*self.running.table.list_sequences(slots), *self.waiting]
        assert self.roster.is_exactly(here), "who is here differs from who runs or waits"
        assert len(self.running) - len(slots) == self._num_ending, "ended rows are miscounted"

    # -- commands ----------------------------------------------------------------------------

    def admit(self, request: Request, *, num_let_in: int = 1) -> None:
        """Enter a request in the load book, to :meth:`add` it when it arrives; ``num_let_in``: so
        many must find room, itself included; 0: the queue's limit was applied to it before.

        A request for which there is a free row does not count as waiting, unless the one in front
        was refused that row. Other threads than the scheduler's may call; all callers share one
        lock.

        Raises:
            QueueFullError: more than ``caps.max_queue`` requests would wait, or be on their way.
        """
        caps, num_waiting = self.packer.caps, len(self.waiting) + self.roster.load.num_coming
        if caps.max_queue is not None and num_let_in:
            num_free = max(0, caps.max_num_seqs - len(self.running))
            num_more = num_let_in - 1 - (0 if self.waiting.is_blocked else num_free)
            if num_waiting + num_more >= caps.max_queue:
                raise QueueFullError.of(num_waiting, num_let_in, caps.max_queue)
        self.roster.load.enter(request)

    def add(self, request: Request, *, is_in_book: bool = False) -> Sequence:
        """Queue a request; ``is_in_book``: :meth:`admit` was called for it.

        Raises:
            RequestError: it could never run.
            QueueFullError: ``caps.max_queue`` requests wait already.
        """
        self.check_request(request)
        if not is_in_book:
            self.admit(request)
        sequence = Sequence.of(request)
        self.waiting.push(sequence)
        self.roster.welcome(sequence)
        return sequence

    def adopt(self, sequences: list[Sequence], *, is_in_book: bool = False) -> None:
        """Queue sequences of another scheduler with their tokens so far, ahead of others;
        ``is_in_book``: the load book has their requests, counted as on their way."""
        # First those that have come, then those that wait: at worst one is counted too late, never
        # twice.
        for sequence in sequences:
            if not is_in_book:
                self.roster.load.enter(sequence.request)
            self.roster.welcome(sequence)
        self.waiting.push_carried(sequences)

    def release(self) -> list[Sequence]:
        """Take every sequence out (running first, in order), for another scheduler to adopt.

        Steps in flight are forgotten: their tokens will be computed again. Until they end
        elsewhere, they stay in the load book, as on their way.
        """
        self._outstanding.clear()
        self._num_ending = 0
        running = self.running.drop_all()
        everyone = [s for s in running if self.roster.is_alive(s)] + self.waiting.clear()
        self.roster.clear()
        return everyone

    def set_hot(self, *, caps: Caps, chooser: ModeChooser, order: Order) -> None:
        """Obey other settings from the next step on."""
        self.packer.caps = caps
        self.packer.chooser = chooser
        self.waiting.order = order

    def abort(self, request_id: str) -> Sequence | None:
        """Drop a request; one in flight is dropped when its last step is committed."""
        sequence = self.roster.find(request_id)
        if sequence is None:
            return None
        if sequence.slot == NO_SLOT:
            self.waiting.remove(request_id)
            self.roster.bid_farewell(sequence)
        else:
            self._end(sequence)
        return sequence

    def schedule(self) -> ScheduledStep | None:
        """The next step for ranks that have room, or None while nothing can run."""
        packed = self._pack()
        return None if packed is None else self._launch(packed)

    def schedule_ahead(self) -> ScheduledStep | None:
        """The step after those that run, before the oldest of them has ended (arXiv 2606.01927,
        "optimistic asynchronous scheduling"); its rows may be that step's rows.

        None if nothing can run ahead, or if KV blocks are so short that a sequence must go.
        """
        if len(self._outstanding) != self.depth:
            return None
        eligible = self.running.free_behind(self._outstanding[0].slots)
        packed = self.packer.pack_ahead(self.next_step_id, eligible)
        return self._launch(packed) if packed is not None and packed.num_rows else None

    def commit(self, step: ScheduledStep, token_ids: Int32Array) -> StepOutcome:
        """Take in the result of the oldest outstanding step: ``token_ids`` i4[R] in row order of
        the sampled rows, ``NO_TOKEN`` ends a sequence without one."""
        self._leave(step)
        outcome = self._take_tokens(step, token_ids)
        for sequence in outcome.failed:
            sequence.has_failed = True  # nobody is to find what its blocks hold
            self._end(sequence)
        self._settle(step, [sequence for sequence, _ in outcome.finished])
        return outcome

    # -- the way of a step -------------------------------------------------------------------

    def _free_rows(self) -> SlotArray:
        """Rows that the next step may hold."""
        return self.running.free if self._outstanding else self.running.slots

    def _pack(self) -> PackedRows | None:
        """The rows of the next step, which hold their blocks for it. None while nothing can run."""
        if len(self._outstanding) >= self.depth or self.is_idle:
            return None
        while True:
            packed = self.packer.pack(self.next_step_id, self._free_rows())
            # All rows of this step's share may have been preempted; then others may fit.
            if packed.num_rows or not packed.has_preempted or self._outstanding:
                return packed if packed.num_rows else None

    def _launch(self, packed: PackedRows) -> ScheduledStep:
        """Put packed rows in flight, as if their results were known."""
        step, table = self.packer.build(packed), self.running.table
        table.in_flight[step.slots] += 1
        table.num_computed[step.slots] += step.query_lens
        table.overhang[step.slots] += step.query_lens
        table.num_tokens[step.sampled_slots] += 1
        for chunk in packed.chunks:
            self.running.end_prefill(chunk.slot)
        self._outstanding.append(step)
        self.next_step_id += 1
        return step

    def _leave(self, step: ScheduledStep) -> None:
        """The oldest step is out of flight."""
        oldest = self._outstanding.popleft() if self._outstanding else None
        assert oldest is step, "steps commit in order"
        self.running.table.in_flight[step.slots] -= 1

    def _take_tokens(self, step: ScheduledStep, token_ids: Int32Array) -> StepOutcome:
        """Give each sampled row its token of ``token_ids`` i4[R], unless its sequence has ended
        meanwhile."""
        table, roster = self.running.table, self.roster
        rows = np.flatnonzero(step.is_sampled)
        is_open = ~table.is_ended[step.slots[rows]]
        is_token = token_ids != NO_TOKEN
        failed_rows = rows[is_open & ~is_token]
        nths = np.flatnonzero(is_open & is_token)
        slots = step.slots[rows[nths]]
        table.num_known[slots] += 1
        sequences = [step.sequences[row] for row in rows[nths].tolist()]
        ids = token_ids[nths].tolist()
        for sequence, token_id in zip(sequences, ids, strict=True):
            sequence.output_ids.append(token_id)
        may_end = table.num_known[slots] >= table.max_len[slots]
        if not roster.ending_ids.isdisjoint(ids):
            may_end |= np.array([token_id in roster.ending_ids for token_id in ids])
        finished: list[tuple[Sequence, FinishReason]] = []
        for nth in np.flatnonzero(may_end).tolist():
            length = int(table.num_known[slots[nth]])
            if reason := sequences[nth].finish_reason(ids[nth], length, roster.eos_token_ids):
                finished.append((sequences[nth], reason))
        return StepOutcome(
            sampled=list(zip(sequences, ids, strict=True)),
            sampled_rows=nths.tolist(),
            finished=finished,
            failed=[step.sequences[row] for row in failed_rows.tolist()],
        )

    def _settle(self, step: ScheduledStep, finished: list[Sequence]) -> None:
        """After a step has left: publish its blocks, end sequences, free rows."""
        if self.running.pool.keeps_prefixes:
            self._publish(step)
        for sequence in finished:
            self._end(sequence)
        if self._num_ending:
            self._drop_ended(step)

    def _publish(self, step: ScheduledStep) -> None:
        """Let others find the blocks that the step's chunks of prompts have filled."""
        for row in range(step.first_chunk, len(step.slots)):
            sequence = step.sequences[row]
            if self.roster.is_alive(sequence) and sequence.slot != NO_SLOT:
                written = step.context_lens[row] + step.query_lens[row]
                self.running.publish(sequence, int(written))

    def _end(self, sequence: Sequence) -> None:
        """End a sequence. Its row is freed when no step in flight holds it."""
        table = self.running.table
        self.roster.bid_farewell(sequence)
        if table.in_flight[sequence.slot]:
            table.is_ended[sequence.slot] = True
            self._num_ending += 1
        else:
            self.running.drop(sequence)

    def _drop_ended(self, step: ScheduledStep) -> None:
        """Free those of the step's rows that have ended and that no other step in flight holds."""
        table = self.running.table
        is_over = table.is_ended[step.slots] & (table.in_flight[step.slots] == 0)
        for row in np.flatnonzero(is_over).tolist():
            self._num_ending -= 1
            self.running.drop(step.sequences[row])
