"""A priority queue of named things, any of which can leave early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

RankT = TypeVar("RankT", bound=tuple[Any, ...] | float)
# Below this the removed entries are not worth a rebuild.
MIN_REBUILD = 64


class NamedHeap(Generic[RankT]):
    """Names in order of their ranks; equal ranks in order of insertion. Not thread safe.

    Removal is lazy: the entry stays in the heap until it comes to the top, or until removed
    entries outnumber the others, so every command is O(log n) over time and memory is O(n).
    """

    def __init__(self, ranks: Iterable[tuple[str, RankT]] = ()) -> None:
        self._entries: dict[str, tuple[RankT, int, str]] = {}
        self._next_ticket = 0
        for name, rank in ranks:
            self._enter(name, rank)
        self._heap = list(self._entries.values())
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Names in order, O(n log n)."""
        return (name for _, _, name in sorted(self._entries.values()))

    @property
    def first(self) -> tuple[str, RankT] | None:
        """The first name and its rank; None while empty."""
        if not self._heap:
            return None
        rank, _, name = self._heap[0]
        return name, rank

    def push(self, name: str, rank: RankT) -> None:
        """Add a name that is not in the heap."""
        assert name not in self._entries, f"{name} is in the heap already"
        heappush(self._heap, self._enter(name, rank))

    def pop(self) -> str:
        """Take the first name out."""
        _, _, name = heappop(self._heap)
        del self._entries[name]
        self._drop_removed()
        return name

    def discard(self, name: str) -> None:
        """Take a name out if it is in."""
        if self._entries.pop(name, None) is not None:
            self._drop_removed()

    def _enter(self, name: str, rank: RankT) -> tuple[RankT, int, str]:
        entry = (rank, self._next_ticket, name)
        self._next_ticket += 1
        self._entries[name] = entry
        return entry

    def _drop_removed(self) -> None:
        """Drop removed entries from the top of the heap, and keep the heap within twice the present
        names."""
        if len(self._heap) > MIN_REBUILD + 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)
        while self._heap and self._entries.get(self._heap[0][2]) is not self._heap[0]:
            heappop(self._heap)
