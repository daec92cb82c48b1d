"""Who is with one scheduler: every request that was accepted and has not ended."""

from __future__ import annotations

from engine.scheduler.load import LoadBook
from engine.scheduler.table import Sequence


class Roster:
    """The living sequences by request id, and what is known of all of them together.

    ``load`` hears of every sequence that comes and goes. Only token ids in ``ending_ids`` may end
    one of them before its length does. Owned by the scheduler's thread, but for ``load``.
    """

    def __init__(self, eos_token_ids: tuple[int, ...], load: LoadBook) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.ending_ids = set(eos_token_ids)
        self.load = load
        self._alive: dict[str, Sequence] = {}

    def find(self, request_id: str) -> Sequence | None:
        return self._alive.get(request_id)

    def is_alive(self, sequence: Sequence) -> bool:
        """Whether this very sequence is still here; a later one may have its id."""
        return self._alive.get(sequence.request_id) is sequence

    def is_exactly(self, sequences: list[Sequence]) -> bool:
        """Whether these are all living sequences, each once."""
        return len(sequences) == len(self._alive) and all(map(self.is_alive, sequences))

    def welcome(self, sequence: Sequence) -> None:
        """Take in a sequence whose request is in the load book."""
        self._alive[sequence.request_id] = sequence
        self.load.arrive()
        self.ending_ids.update(sequence.request.sampling.stop_token_ids)

    def bid_farewell(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        del self._alive[sequence.request_id]
        self.load.leave(sequence.request)
        if not self._alive:
            self.ending_ids = set(self.eos_token_ids)

    def clear(self) -> None:
        """Everyone leaves at once, for another scheduler."""
        self.load.set_out(len(self._alive))
        self._alive.clear()
