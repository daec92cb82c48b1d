"""Which requests have run out of time."""

from __future__ import annotations

from engine.scheduler.heap import NamedHeap


class Deadlines:
    """Deadlines of requests in progress, on the engine's clock. Not thread safe."""

    def __init__(self) -> None:
        self._heap: NamedHeap[float] = NamedHeap()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_s(self) -> float | None:
        """The earliest deadline; None without one."""
        first = self._heap.first
        return first[1] if first is not None else None

    def add(self, request_id: str, deadline_s: float) -> None:
        """Watch a request; a deadline it had before no longer counts."""
        self._heap.discard(request_id)
        self._heap.push(request_id, deadline_s)

    def discard(self, request_id: str) -> None:
        """Stop watching a request, if it was watched."""
        self._heap.discard(request_id)

    def pop_expired(self, now_s: float) -> list[str]:
        """Stop watching the requests whose deadline is ``now_s`` or earlier, earliest first."""
        expired: list[str] = []
        while (next_s := self.next_s) is not None and next_s <= now_s:
            expired.append(self._heap.pop())
        return expired
