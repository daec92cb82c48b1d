"""The scheduler for virtual time, where nobody computes content: many steps are taken at once.

A *quiet* stretch is one in which nothing but lengths changes: every row decodes, nobody comes in.
How long it lasts and the shapes of its steps are known beforehand, so it is committed in bulk.
Property tests hold the state afterwards equal to that after single steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import PackedRows, ScheduledStep, SlotArray
from engine.scheduler.table import Sequence, SequenceTable
from engine.spec.modes import Mode
from engine.spec.steps import Int32Array, StepShape


class QuietRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``count`` decode steps of the same rows, one after the other. ``shape`` is that of the first
    step; each later step has one more token of context per row. ``has_end``: rows end with the last
    step.
    """

    shape: StepShape
    count: int
    has_end: bool


@dataclass(frozen=True, kw_only=True)
class QuietRounds:
    """``count`` rounds of steps. A round has one step for each group of rows, in turn. ``shapes``
    are those of the first round; each later round has one more token of context per row.
    """

    count: int
    groups: tuple[SlotArray, ...]
    shapes: tuple[StepShape, ...]

    def last_steps(self, count: int, table: SequenceTable, *, step_id: int) -> list[ScheduledStep]:
        """The steps in flight after ``count`` rounds: the last ones of all groups but the first.

        ``table`` is as before the rounds; ``step_id`` is that of the last step of the first group.
        """
        return [
            ScheduledStep(
                step_id=step_id + nth,
                shape=with_more_context(shape, (count - 1) * shape.num_seqs),
                slots=slots,
                query_lens=np.ones(len(slots), np.int32),
                context_lens=table.num_computed[slots] + np.int32(count - 1),
                is_sampled=np.ones(len(slots), np.bool_),
                first_chunk=len(slots),
                sequences=table.list_sequences(slots),
                placed=[],
                grown=[],
            )
            for nth, (slots, shape) in enumerate(zip(self.groups, self.shapes, strict=True))
            if nth
        ]


class TakenStep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A step that was committed as soon as it was packed: rows ``sampled_slots`` got a token each,
    and sequences ``ended`` got their last one.
    """

    sampled_slots: SlotArray
    ended: list[Sequence]


class SkippingScheduler(Scheduler):
    """The scheduler with verbs that take steps without looking at their content: only length limits
    end a sequence.

    * One step at a time: :meth:`pack`, then :meth:`launch` and :meth:`commit_lengths`; or
      :meth:`take`, which is both at once.
    * Quiet steps: :meth:`quiet_steps` tells them, :meth:`advance` commits them. With a pipeline
      it is :meth:`quiet_rounds` and :meth:`advance_rounds`.
    """

    # -- one step ----------------------------------------------------------------------------

    def pack(self) -> PackedRows | None:
        """The rows of the next step, which hold their blocks for it; None while nothing can run.
        :meth:`launch` or :meth:`take` must follow.
        """
        return self._pack()

    def launch(self, packed: PackedRows) -> ScheduledStep:
        """Put packed rows in flight, as if their results were known."""
        return self._launch(packed)

    def commit_lengths(self, step: ScheduledStep) -> list[Sequence]:
        """Take in the oldest outstanding step; returns the sequences that ended with it."""
        self._leave(step)
        slots, table = step.sampled_slots, self.running.table
        if self._num_ending:
            slots = slots[~table.is_ended[slots]]
        table.num_known[slots] += 1
        finished = self._full_rows(slots)
        self._settle(step, finished)
        return finished

    def take(self, packed: PackedRows) -> TakenStep:
        """Commit packed rows at once, if nobody looks while the step runs. Not with a pipeline."""
        assert self.depth == 1, "a pipeline has steps in flight"
        sampled = packed.decodes
        self.running.table.counts[:, sampled] += 1
        for chunk in packed.chunks:
            self.running.compute(chunk.slot, chunk.num_tokens, is_whole=chunk.is_whole)
        if whole := [chunk.slot for chunk in packed.chunks if chunk.is_whole]:
            sampled = np.concatenate((sampled, np.array(whole, np.intp)))
        self.next_step_id += 1
        ended = self._full_rows(sampled)
        for sequence in ended:
            self._end(sequence)
        return TakenStep(sampled_slots=sampled, ended=ended)

    # -- quiet steps -------------------------------------------------------------------------

    def quiet_steps(self, most: int) -> Iterator[QuietRun]:
        """The decode steps, up to ``most``, that will pass before anything but lengths changes,
        in runs of the same rows; valid as long as nothing is scheduled, added or dropped.

        Within them no sequence is admitted or preempted; sequences may end, which begins the
        next run. With a pipeline see :meth:`quiet_rounds`.
        """
        running, table, slots = self.running, self.running.table, self.running.slots
        if self.depth > 1 or self._outstanding or not self._is_steady():
            return
        if len(slots) > self.packer.caps.max_num_batched_tokens:
            return
        left = table.max_len[slots] - table.num_tokens[slots]
        frees_what_counts = len(self.waiting) > 0 or running.pool.keeps_prefixes
        if frees_what_counts or not running.has_blocks_for(most):
            # When a row ends, a request may come in, or other rows may take its blocks instead of
            # cached ones.
            until_end = int(left.min())
            count = running.steps_within_blocks(min(until_end, most))
            if count:
                shape = self._decode_shape(slots, self.next_step_id)
                yield QuietRun(shape=shape, count=count, has_end=count == until_end)
            return
        # Sort rows by their ends: each run ends with the first row that is left.
        order = left.argsort()
        lefts = left[order].tolist()
        # contexts[i] = computed tokens of rows i, i+1, ... of this order, those left when the first
        # i have ended. It is a running sum from the back, so it is reversed before and after.
        contexts = table.num_computed[slots[order[::-1]]].cumsum()[::-1].tolist()
        done = first = 0
        while first < len(lefts) and done < most:
            num_rows, until_end = len(lefts) - first, lefts[first]
            mode = self.packer.chooser.choose(num_rows, self.next_step_id + done)
            # Each row left computes ``done`` tokens before this run, and one in its first step.
            shape = _decodes(mode, num_rows, contexts[first] + num_rows * (done + 1))
            count = min(until_end, most) - done
            yield QuietRun(shape=shape, count=count, has_end=until_end <= most)
            done += count
            while first < len(lefts) and lefts[first] <= done:
                first += 1

    def advance(self, num_steps: int) -> list[Sequence]:
        """Commit the first ``num_steps`` of :meth:`quiet_steps` in bulk: one token per sequence
        and step. Returns the sequences that ended with them, in the order of their ends."""
        table, slots = self.running.table, self.running.slots
        left = table.max_len[slots] - table.num_tokens[slots]
        # A row that ends within them takes only as many steps as it has tokens left.
        self._skip(num_steps, np.minimum(left, np.int32(num_steps)))
        rows = (left <= num_steps).nonzero()[0]
        if not len(rows):
            return []
        # Stable, because rows that end with the same step end in row order, as in single steps.
        finished = table.list_sequences(slots[rows[left[rows].argsort(kind="stable")]])
        for sequence in finished:
            self._end(sequence)
        return finished

    def quiet_rounds(self) -> QuietRounds | None:
        """The rounds that will pass before anything but lengths changes, if all stages of a
        pipeline but one have a step.

        A round launches ``depth`` decode steps in turn. The first has the rows that no step in
        flight holds; the others have the rows of each step in flight, oldest first. After each
        launch the oldest step is committed. No sequence ends in a round.
        """
        if self.depth == 1 or len(self._outstanding) != self.depth - 1:
            return None
        running, table = self.running, self.running.table
        groups = [self._free_rows(), *(step.slots for step in self._outstanding)]
        sizes = [len(slots) for slots in groups]
        # A larger group would be cut, and its rest would join the next group.
        most = min(self.packer.share_of_running, self.packer.caps.max_num_batched_tokens)
        is_whole = sum(sizes) == len(running) and min(sizes) >= 1 and max(sizes) <= most
        # A chunk that ends one token before its prompt does gives its row no token.
        are_sampled = all(step.num_sampled == len(step.slots) for step in self._outstanding)
        # When a prompt ends in flight, others can find its blocks, and so come in sooner.
        keeps_prefixes = running.pool.keeps_prefixes
        has_news = keeps_prefixes and any(s.first_chunk < len(s.slots) for s in self._outstanding)
        if not is_whole or not are_sampled or has_news or not self._is_steady():
            return None
        left = table.max_len[running.slots] - table.num_tokens[running.slots]
        # Rows in flight are counted one token ahead; the others have one round less to go.
        left -= table.in_flight[running.slots] == 0
        count = running.steps_within_blocks(int(left.min()))
        # The next steps of a group have its rows in running order, whatever order this step had.
        groups[1:] = [running.in_order(slots) for slots in groups[1:]]
        shapes = tuple(
            self._decode_shape(slots, self.next_step_id + nth) for nth, slots in enumerate(groups)
        )
        return QuietRounds(count=count, groups=tuple(groups), shapes=shapes) if count else None

    def advance_rounds(self, rounds: QuietRounds, count: int) -> list[ScheduledStep]:
        """Launch and commit ``count`` of :meth:`quiet_rounds` in bulk. Returns the steps that are
        then in flight; they replace the earlier ones.
        """
        # Done before the rows move on, because ``last_steps`` counts from where the rounds began.
        first_id = self.next_step_id + (count - 1) * self.depth
        steps = rounds.last_steps(count, self.running.table, step_id=first_id)
        self._skip(count * self.depth, count)
        self._outstanding.clear()
        self._outstanding.extend(steps)
        return steps

    # -- parts -------------------------------------------------------------------------------

    def _skip(self, num_steps: int, num_new: int | Int32Array) -> None:
        """Let ``num_steps`` pass and give each row ``num_new`` tokens."""
        self.running.advance(num_new)
        self.waiting.pass_over()
        self.next_step_id += num_steps

    def _is_steady(self) -> bool:
        """Whether every row decodes, nobody comes in, and sizes alone decide the mode."""
        return (
            len(self.running) > 0
            and not self.running.prefilling
            and self.packer.chooser.coin_seed is None
            and not self.packer.can_admit()
        )

    def _full_rows(self, slots: SlotArray) -> list[Sequence]:
        """Sequences of these rows that have all their tokens."""
        table = self.running.table
        rows = (table.num_known[slots] >= table.max_len[slots]).nonzero()[0]
        return table.list_sequences(slots[rows]) if len(rows) else []

    def _decode_shape(self, slots: SlotArray, step_id: int) -> StepShape:
        """Shape of a step that decodes one token of each of ``slots``."""
        count = len(slots)
        context = int(np.add.reduce(self.running.table.num_computed[slots])) + count
        return _decodes(self.packer.chooser.choose(count, step_id), count, context)


def with_more_context(shape: StepShape, num_tokens: int) -> StepShape:
    """The same decode step with ``num_tokens`` more tokens of context."""
    return _decodes(shape.mode, shape.num_seqs, shape.decode_context_tokens + num_tokens)


def _decodes(mode: Mode, num_rows: int, context_tokens: int) -> StepShape:
    return StepShape(
        mode=mode,
        num_seqs=num_rows,
        num_decode_tokens=num_rows,
        decode_context_tokens=context_tokens,
        num_sampled=num_rows,
    )
