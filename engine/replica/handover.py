"""What replicas that stop leave to those that come after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.replica.stream import RequestStream
from engine.scheduler.table import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Handover:
    """Unfinished ``sequences`` with their tokens so far, and their ``streams`` to the callers, by
    request id.
    """

    sequences: list[Sequence] = field(default_factory=list)
    streams: dict[str, RequestStream] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Iterable[Handover]) -> Handover:
        """What several replicas leave, as one."""
        whole = cls()
        for part in parts:
            whole.sequences.extend(part.sequences)
            whole.streams.update(part.streams)
        return whole

    def take_out(self, request_id: str) -> RequestStream | None:
        """Leave one out; its stream, where it is here."""
        stream = self.streams.pop(request_id, None)
        if stream is not None:
            self.sequences[:] = [s for s in self.sequences if s.request_id != request_id]
        return stream

    def deal(self, count: int) -> list[Handover]:
        """Deal the sequences, with their streams, to ``count`` replicas in turn."""
        hands = [self.sequences[index::count] for index in range(count)]
        return [
            Handover(
                sequences=mine, streams={s.request_id: self.streams[s.request_id] for s in mine}
            )
            for mine in hands
        ]
