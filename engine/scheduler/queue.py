"""Sequences that wait for a row, in the order in which they will be admitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from engine.scheduler.heap import NamedHeap
from engine.scheduler.table import Sequence
from engine.spec.settings import Order

Rank = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """A sequence in the queue; ``turn`` is its place among equals."""

    sequence: Sequence
    turn: int
    is_carried: bool

    def rank(self, order: Order) -> Rank:
        """What the queue is sorted by; carried-over sequences have been served already."""
        match order:
            case Order.FCFS:
                return (not self.is_carried, self.turn)
            case Order.SHORTEST_PROMPT:
                length = 0 if self.is_carried else self.sequence.num_tokens
                return (not self.is_carried, length, self.turn)
            case Order.PRIORITY:
                # A request that was served for a while must not hold up a more urgent one.
                return (self.sequence.request.priority, not self.is_carried, self.turn)
            case _:
                assert_never(order)


class WaitingQueue:
    """Waiting sequences by :class:`engine.spec.settings.Order`, which may change at any time.

    Sequences carried over (preempted here, or adopted from another scheduler) come before those
    that never ran, in the order of their arrival; under ``PRIORITY`` only among equal
    priorities. Taking one is O(log n); iterating sorts. Not thread safe.
    """

    def __init__(self, order: Order = Order.FCFS) -> None:
        self._order = order
        self._next_arrival = 0
        self._entries: dict[str, _Waiting] = {}
        self._heap: NamedHeap[Rank] = NamedHeap()
        self._was_passed_over = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence, first in order first."""
        return (self._entries[request_id].sequence for request_id in self._heap)

    @property
    def order(self) -> Order:
        return self._order

    @order.setter
    def order(self, order: Order) -> None:
        if order is self._order:
            return
        self._order = order
        self._heap = NamedHeap((name, w.rank(order)) for name, w in self._entries.items())

    @property
    def is_blocked(self) -> bool:
        """Whether the last scheduled step left one of these waiting."""
        # Those that were refused a row may be gone by now: an empty queue blocks nobody.
        return self._was_passed_over and len(self._entries) > 0

    def pass_over(self) -> None:
        """Note that a step has been scheduled without those who are still in the queue."""
        self._was_passed_over = len(self._entries) > 0

    def peek(self) -> Sequence | None:
        """The sequence that :meth:`pop` would take."""
        first = self._heap.first
        return self._entries[first[0]].sequence if first is not None else None

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence that arrives now; it gets its arrival number here."""
        sequence.arrival_number = self._next_arrival
        self._next_arrival += 1
        self._enter(sequence, turn=sequence.arrival_number, is_carried=False)

    def push_carried(self, sequences: list[Sequence]) -> None:
        """Queue sequences that waited or ran before, ahead of those that did not.

        They keep their arrival numbers (one without a number gets it here) and, at equal priority,
        the given order: each waits as if it had arrived no later than those behind it in the list.
        """
        for sequence in sequences:
            if sequence.arrival_number < 0:
                sequence.arrival_number = self._next_arrival
            # The number may come from another queue; later arrivals here must get larger ones.
            self._next_arrival = max(self._next_arrival, sequence.arrival_number + 1)
        # From the back, so that each turn is at most that of the sequence behind.
        turns: list[int] = []
        for sequence in reversed(sequences):
            turns.append(min([sequence.arrival_number, *turns[-1:]]))
        for sequence, turn in zip(sequences, reversed(turns), strict=True):
            self._enter(sequence, turn=turn, is_carried=True)

    def pop(self) -> Sequence:
        """Take the first sequence; the caller knows that one waits."""
        return self._entries.pop(self._heap.pop()).sequence

    def remove(self, request_id: str) -> Sequence | None:
        """Take one sequence out, wherever it stands."""
        waiting = self._entries.pop(request_id, None)
        if waiting is None:
            return None
        self._heap.discard(request_id)
        return waiting.sequence

    def clear(self) -> list[Sequence]:
        """Take every sequence out, first in order first."""
        everyone = list(self)
        self._entries.clear()
        self._heap = NamedHeap()
        return everyone

    def _enter(self, sequence: Sequence, *, turn: int, is_carried: bool) -> None:
        waiting = _Waiting(sequence=sequence, turn=turn, is_carried=is_carried)
        self._heap.push(sequence.request_id, waiting.rank(self._order))
        self._entries[sequence.request_id] = waiting
