"""The scheduler: waiting and running sequences become steps. The simulator runs this same code.

``engine.scheduler.packing`` chooses a step's rows; this file keeps what steps in flight will have
done, and takes their results in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from engine.modes.chooser import ModeChooser
from engine.modes.pace import StepPace
from engine.scheduler.admission import Admission
from engine.scheduler.load import LoadBook
from engine.scheduler.outcome import outcome_of
from engine.scheduler.packing import PackedRows, StepPacker
from engine.scheduler.queue import WaitingQueue
from engine.scheduler.roster import Roster
from engine.scheduler.rows import RunningSet
from engine.scheduler.skipping import QuietRounds, QuietRun, QuietSteps
from engine.scheduler.step import ScheduledStep, SchedulerCounts, SlotArray, StepOutcome, TakenStep
from engine.scheduler.table import NO_SLOT, Sequence, SequenceTable
from engine.spec.request import Request
from engine.spec.settings import Caps, Order
from engine.spec.steps import Int32Array


class Scheduler:
    """Turns requests into steps and results into sequence state. Not thread safe.

    Up to ``depth`` steps run at once (one per pipeline stage), and one more may be scheduled
    ahead of them, on the assumption that no sequence stops. Steps are committed in order.
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
        keeps_prefixes: bool = False,
        load: LoadBook | None = None,
    ) -> None:
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.depth = depth
        self.next_step_id = 0
        self._roster = Roster(eos_token_ids, load or LoadBook())
        self._running = RunningSet(
            num_slots=envelope.max_num_seqs,
            num_blocks=num_blocks,
            block_size=block_size,
            max_blocks=-(-max_model_len // block_size),
            keeps_prefixes=keeps_prefixes,
        )
        self._waiting = WaitingQueue(order)
        self._packer = StepPacker(
            self._running, self._waiting, caps=caps, chooser=chooser, depth=depth
        )
        self._outstanding: deque[ScheduledStep] = deque()
        self._quiet = QuietSteps(self._running, self._packer, self._outstanding, depth=depth)
        self._admission = Admission(self._running, self._waiting, max_model_len=max_model_len)
        # Rows that have ended and wait for the steps in flight that hold them.
        self._num_ending = 0

    # -- questions ---------------------------------------------------------------------------

    @property
    def caps(self) -> Caps:
        return self._packer.caps

    @property
    def chooser(self) -> ModeChooser:
        return self._packer.chooser

    @property
    def order(self) -> Order:
        return self._waiting.order

    @property
    def pace(self) -> StepPace:
        """How long steps take here, as far as it was told."""
        return self._packer.pace

    @property
    def table(self) -> SequenceTable:
        return self._running.table

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._roster.eos_token_ids

    @property
    def counts(self) -> SchedulerCounts:
        """Preemptions and use of the prefix cache so far."""
        return SchedulerCounts(
            preemptions=self._packer.num_preemptions,
            prefix_queries=self._packer.num_prefix_queries,
            prefix_hits=self._packer.num_prefix_hits,
        )

    @property
    def load_tokens(self) -> int:
        """Tokens that accepted requests may still grow to; what a router balances."""
        return self._roster.load_tokens

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running_slots(self) -> SlotArray:
        """Rows of :attr:`table` that run, in the order they were admitted."""
        return self._running.slots

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not len(self._running) and not len(self._waiting)

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
        self._admission.check_request(request)

    def check_queue(self, num_coming: int = 0) -> None:
        """Refuse one more request where as many wait as may; ``num_coming`` are on their way here.

        Raises:
            QueueFullError: ``caps.max_queue`` requests wait already.
        """
        self._admission.check_queue(self.caps, num_coming)

    # -- commands ----------------------------------------------------------------------------

    def admit(self, request: Request, *, has_waited: bool = False) -> None:
        """Enter a request in the load book, to :meth:`add` it when it arrives; ``has_waited``: it
        was held to the queue's limit elsewhere. Another thread than the scheduler's may call.

        Raises:
            QueueFullError: ``caps.max_queue`` requests wait already, or are on their way.
        """
        if not has_waited:
            self.check_queue(self._roster.load.num_coming)
        self._roster.load.enter(request)

    def add(self, request: Request, *, is_admitted: bool = False) -> Sequence:
        """Queue a request; ``is_admitted``: :meth:`admit` was called for it.

        Raises:
            RequestError: it could never run.
            QueueFullError: ``caps.max_queue`` requests wait already.
        """
        self.check_request(request)
        if not is_admitted:
            self.admit(request)
        sequence = Sequence.of(request)
        self._waiting.push(sequence)
        self._roster.welcome(sequence)
        return sequence

    def adopt(self, sequences: list[Sequence], *, is_admitted: bool = False) -> None:
        """Queue sequences of another scheduler with their tokens so far, ahead of others;
        ``is_admitted``: the load book has their requests, as those on their way."""
        self._waiting.push_carried(sequences)
        for sequence in sequences:
            if not is_admitted:
                self._roster.load.enter(sequence.request)
            self._roster.welcome(sequence)

    def release(self) -> list[Sequence]:
        """Take every sequence out (running first, in order), for another scheduler to adopt.

        Steps in flight are forgotten: their tokens will be computed again. The load book has the
        sequences until they end elsewhere, as on their way.
        """
        self._outstanding.clear()
        self._num_ending = 0
        running = self._running.drop_all()
        everyone = [s for s in running if self._roster.is_alive(s)] + self._waiting.clear()
        self._roster.clear()
        return everyone

    def set_hot(self, *, caps: Caps, chooser: ModeChooser, order: Order) -> None:
        """Obey other settings from the next step on."""
        self._packer.caps = caps
        self._packer.chooser = chooser
        self._waiting.order = order

    def abort(self, request_id: str) -> Sequence | None:
        """Drop a request. In flight, it is dropped when its last step is committed."""
        sequence = self._roster.find(request_id)
        if sequence is None:
            return None
        if sequence.slot == NO_SLOT:
            self._waiting.remove(request_id)
            self._roster.bid_farewell(sequence)
        else:
            self._end(sequence)
        return sequence

    def schedule(self) -> ScheduledStep | None:
        """The next step for ranks that have room, or None while nothing can run."""
        packed = self.pack()
        return None if packed is None else self.launch(packed)

    def pack(self) -> PackedRows | None:
        """The rows of the next step, which hold their blocks for it; :meth:`launch` or
        :meth:`take` them, before anything else. None while nothing can run."""
        if len(self._outstanding) >= self.depth or self.is_idle:
            return None
        self._running.grown.clear()
        while True:
            packed = self._packer.pack(self.next_step_id, self._free_rows())
            # Rows of this step's share may all have gone to make room, and others then fit.
            if packed.num_rows or not packed.has_preempted or self._outstanding:
                break
        self._admission.is_blocked = len(self._waiting) > 0
        return packed if packed.num_rows else None

    def launch(self, packed: PackedRows) -> ScheduledStep:
        """Put packed rows in flight, as if their results were known."""
        step = self._packer.build(packed)
        table = self.table
        table.in_flight[step.slots] += 1
        table.num_computed[step.slots] += step.query_lens
        table.overhang[step.slots] += step.query_lens
        table.num_tokens[step.sampled_slots] += 1
        for chunk in packed.chunks:
            self._running.end_prefill(chunk.slot)
        self._outstanding.append(step)
        self.next_step_id += 1
        return step

    def schedule_ahead(self) -> ScheduledStep | None:
        """The step after those that run, before the oldest of them has ended (arXiv 2606.01927,
        "optimistic asynchronous scheduling"); its rows may be that step's rows.

        None where nothing can run ahead, or KV blocks are so short that a sequence must go.
        """
        if len(self._outstanding) != self.depth:
            return None
        self._running.grown.clear()
        eligible = self._running.free_behind(self._outstanding[0].slots)
        packed = self._packer.pack_ahead(self.next_step_id, eligible)
        if packed is None:
            return None
        self._admission.is_blocked = len(self._waiting) > 0
        return self.launch(packed) if packed.num_rows else None

    def commit(self, step: ScheduledStep, token_ids: Int32Array) -> StepOutcome:
        """Take in the result of the oldest outstanding step: ``token_ids`` i4[R] in row order of
        the sampled rows."""
        self._leave(step)
        outcome = outcome_of(step, token_ids, self.table, self._roster)
        self._publish(step)
        for sequence, _ in outcome.finished:
            self._end(sequence)
        self._drop_ended(step)
        return outcome

    def commit_lengths(self, step: ScheduledStep) -> list[Sequence]:
        """Take in the oldest outstanding step where nobody computes content (simulation): only
        length limits end a sequence. Those that ended."""
        self._leave(step)
        slots = step.sampled_slots
        if self._num_ending:
            slots = slots[~self.table.is_ended[slots]]
        self.table.num_known[slots] += 1
        self._publish(step)
        finished = self._full_rows(slots)
        for sequence in finished:
            self._end(sequence)
        self._drop_ended(step)
        return finished

    # -- time skipping -----------------------------------------------------------------------

    def take(self, packed: PackedRows) -> TakenStep:
        """Commit packed rows at once: :meth:`launch` and :meth:`commit_lengths` for whoever knows
        that nobody looks while the step runs. Not with a pipeline."""
        assert self.depth == 1, "a pipeline has steps in flight"
        sampled = packed.decodes
        self.table.counts[:, sampled] += 1
        for chunk in packed.chunks:
            self._running.compute(chunk.slot, chunk.num_tokens, is_whole=chunk.is_whole)
        if whole := [chunk.slot for chunk in packed.chunks if chunk.is_whole]:
            sampled = np.concatenate((sampled, np.array(whole, np.intp)))
        self.next_step_id += 1
        ended = self._full_rows(sampled)
        for sequence in ended:
            self._end(sequence)
        return TakenStep(sampled_slots=sampled, ended=ended)

    def quiet_steps(self, most: int) -> Iterator[QuietRun]:
        """The decode steps, up to ``most``, that will pass before anything but lengths changes,
        in runs of the same rows.

        Within them no sequence is admitted or preempted; sequences may end, which begins the
        next run. With a pipeline see :meth:`quiet_rounds`.
        """
        return self._quiet.runs(self.next_step_id, most)

    def advance(self, num_steps: int) -> list[Sequence]:
        """Commit the first ``num_steps`` of :meth:`quiet_steps` in bulk: one token per sequence
        and step. The sequences that ended with them, in the order of their ends."""
        table, slots = self.table, self._running.slots
        left = table.max_len[slots] - table.num_tokens[slots]
        self._running.advance(np.minimum(left, np.int32(num_steps)))
        self._admission.is_blocked = len(self._waiting) > 0
        self.next_step_id += num_steps
        rows = (left <= num_steps).nonzero()[0]
        if not len(rows):
            return []
        finished = table.list_sequences(slots[rows[left[rows].argsort(kind="stable")]])
        for sequence in finished:
            self._end(sequence)
        return finished

    def quiet_rounds(self) -> QuietRounds | None:
        """With a pipeline whose stages all but one have a step: rounds that will pass before
        anything but lengths changes.

        A round launches ``depth`` decode steps in turn, first of the rows that no step in flight
        holds, then of those of each step in flight, oldest first; after each launch the oldest
        step is committed. No sequence ends in it.
        """
        return self._quiet.rounds(self._free_rows(), self.next_step_id)

    def advance_rounds(self, rounds: QuietRounds, count: int) -> list[ScheduledStep]:
        """Launch and commit ``count`` of :meth:`quiet_rounds` in bulk; the steps then in flight,
        which take the places of those before."""
        # Before the rows move on: the steps are told from where the rounds began.
        first_id = self.next_step_id + (count - 1) * self.depth
        steps = rounds.last_steps(count, self.table, step_id=first_id)
        self._running.advance(count)
        self._admission.is_blocked = len(self._waiting) > 0
        self.next_step_id += count * self.depth
        self._outstanding.clear()
        self._outstanding.extend(steps)
        return steps

    # -- one step ----------------------------------------------------------------------------

    def _free_rows(self) -> SlotArray:
        """Rows that the next step may hold."""
        return self._running.free if self._outstanding else self._running.slots

    def _leave(self, step: ScheduledStep) -> None:
        """The oldest step is out of flight."""
        oldest = self._outstanding.popleft() if self._outstanding else None
        assert oldest is step, "steps commit in order"
        self.table.in_flight[step.slots] -= 1

    def _publish(self, step: ScheduledStep) -> None:
        """Let others find the blocks that the step's chunks of prompts have filled."""
        if not self._running.pool.keeps_prefixes:
            return
        for row in range(step.first_chunk, len(step.slots)):
            sequence = step.sequences[row]
            if self._roster.is_alive(sequence) and sequence.slot != NO_SLOT:
                written = step.context_lens[row] + step.query_lens[row]
                self._running.publish(sequence, int(written))

    def _full_rows(self, slots: SlotArray) -> list[Sequence]:
        """Sequences of these rows that have all their tokens."""
        table = self.table
        rows = (table.num_known[slots] >= table.max_len[slots]).nonzero()[0]
        return table.list_sequences(slots[rows]) if len(rows) else []

    def _end(self, sequence: Sequence) -> None:
        """The sequence is over; its row goes when no step in flight holds it."""
        self._roster.bid_farewell(sequence)
        if self.table.in_flight[sequence.slot]:
            self.table.is_ended[sequence.slot] = True
            self._num_ending += 1
        else:
            self._running.drop(sequence)

    def _drop_ended(self, step: ScheduledStep) -> None:
        if not self._num_ending:
            return
        table = self.table
        is_over = table.is_ended[step.slots] & (table.in_flight[step.slots] == 0)
        for row in np.flatnonzero(is_over).tolist():
            self._num_ending -= 1
            self._running.drop(step.sequences[row])
