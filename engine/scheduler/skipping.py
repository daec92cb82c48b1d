"""Stretches of steps in which nothing but lengths changes: how long they are, and their shapes.

The simulator commits such a stretch at once (:meth:`engine.scheduler.scheduler.Scheduler.advance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from engine.modes.chooser import ModeChooser
from engine.scheduler.packing import StepPacker
from engine.scheduler.rows import RunningSet
from engine.scheduler.step import ScheduledStep, SlotArray
from engine.scheduler.table import SequenceTable
from engine.spec.plan import Mode
from engine.spec.steps import StepShape


class QuietRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``count`` decode steps of the same rows, one after the other. ``shape`` is the first one's;
    each later one has one token of context per row more. ``has_end``: rows end with the last."""

    shape: StepShape
    count: int
    has_end: bool


@dataclass(frozen=True, kw_only=True)
class QuietRounds:
    """``count`` rounds of steps, one for each group of rows, in turn; each has the group's shape
    here and one token of context per row and round more."""

    count: int
    groups: tuple[SlotArray, ...]
    shapes: tuple[StepShape, ...]

    def last_steps(self, count: int, table: SequenceTable, *, step_id: int) -> list[ScheduledStep]:
        """The steps in flight after ``count`` rounds: the last ones of all groups but the first.

        ``table`` is as before the rounds; ``step_id`` is that of the last step of the first group.
        """
        return [
            ScheduledStep.of_decodes(
                step_id=step_id + nth,
                shape=with_more_context(shape, (count - 1) * shape.num_seqs),
                slots=slots,
                context_lens=table.num_computed[slots] + np.int32(count - 1),
                sequences=table.list_sequences(slots),
            )
            for nth, (slots, shape) in enumerate(zip(self.groups, self.shapes, strict=True))
            if nth
        ]


class QuietSteps:
    """Answers for one scheduler: its rows, its packer and its steps in flight."""

    def __init__(
        self,
        running: RunningSet,
        packer: StepPacker,
        outstanding: Sequence[ScheduledStep],
        *,
        depth: int,
    ) -> None:
        self._running, self._packer = running, packer
        self._outstanding = outstanding
        self._depth = depth

    def runs(self, step_id: int, most: int) -> Iterator[QuietRun]:
        """See :meth:`.Scheduler.quiet_steps`; for as long as nothing changes."""
        running, table = self._running, self._running.table
        if self._depth > 1 or self._outstanding or not self._is_steady():
            return
        slots = running.slots
        if len(slots) > self._packer.caps.max_num_batched_tokens:
            return
        left = table.max_len[slots] - table.num_tokens[slots]
        frees_what_counts = self._packer.has_waiting or running.pool.keeps_prefixes
        if frees_what_counts or not running.has_blocks_for(most):
            # At the end of a row somebody may come in, or its blocks be taken for cached ones.
            until_end = int(left.min())
            count = running.steps_within_blocks(min(until_end, most))
            if count:
                shape = decode_shape(running, slots, self._packer.chooser, step_id)
                yield QuietRun(shape=shape, count=count, has_end=count == until_end)
            return
        order = left.argsort()
        lefts = left[order].tolist()
        # Context of the rows that are left when the first of this order have ended.
        contexts = table.num_computed[slots[order[::-1]]].cumsum()[::-1].tolist()
        done = first = 0
        while first < len(lefts) and done < most:
            num_rows, until_end = len(lefts) - first, lefts[first]
            mode = self._packer.chooser.choose(num_rows, step_id + done)
            shape = _decodes(mode, num_rows, contexts[first] + num_rows * (done + 1))
            count = min(until_end, most) - done
            yield QuietRun(shape=shape, count=count, has_end=until_end <= most)
            done += count
            while first < len(lefts) and lefts[first] <= done:
                first += 1

    def rounds(self, free: SlotArray, step_id: int) -> QuietRounds | None:
        """See :meth:`.Scheduler.quiet_rounds`; ``free`` are the rows no step in flight holds."""
        if self._depth == 1 or len(self._outstanding) != self._depth - 1:
            return None
        running, table = self._running, self._running.table
        groups = [free, *(step.slots for step in self._outstanding)]
        sizes = [len(slots) for slots in groups]
        # A larger group would be cut, and the rest of it join the next one.
        most = min(self._packer.share_of_running, self._packer.caps.max_num_batched_tokens)
        is_whole = sum(sizes) == len(running) and min(sizes) >= 1 and max(sizes) <= most
        # A chunk that ends one token before its prompt does gives its row no token.
        are_sampled = all(step.num_sampled == len(step.slots) for step in self._outstanding)
        # A prompt that ends in flight will let others find its blocks, and so come in sooner.
        keeps_prefixes = running.pool.keeps_prefixes
        has_news = keeps_prefixes and any(s.first_chunk < len(s.slots) for s in self._outstanding)
        if not is_whole or not are_sampled or has_news or not self._is_steady():
            return None
        left = table.max_len[running.slots] - table.num_tokens[running.slots]
        # Rows in flight have been counted one token ahead.
        left -= table.in_flight[running.slots] == 0
        count = running.steps_within_blocks(int(left.min()))
        # A step's followers are packed in the order in which its rows run, whatever its own was.
        groups[1:] = [running.in_order(slots) for slots in groups[1:]]
        chooser = self._packer.chooser
        shapes = tuple(
            decode_shape(running, slots, chooser, step_id + nth) for nth, slots in enumerate(groups)
        )
        return QuietRounds(count=count, groups=tuple(groups), shapes=shapes) if count else None

    def _is_steady(self) -> bool:
        """Whether every row decodes, none ends or comes, and sizes alone decide the mode."""
        running, packer = self._running, self._packer
        return (
            len(running) > 0
            and not running.prefilling
            and not packer.chooser.pin.startswith("random")
            and not packer.can_admit()
        )


def decode_shape(
    running: RunningSet, slots: SlotArray, chooser: ModeChooser, step_id: int
) -> StepShape:
    """Shape of a step that decodes one token of each of ``slots``."""
    count = len(slots)
    context = int(np.add.reduce(running.table.num_computed[slots])) + count
    return _decodes(chooser.choose(count, step_id), count, context)


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
