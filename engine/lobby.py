"""Accepted requests that no replica has: held back while none serves, or on their way to one."""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.replica.handover import Handover
from engine.replica.stream import RequestStream
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.request import FinishReason, Request


class Lobby:
    """Where requests are while no replica has them: before the start, and during a reshape.

    While it is holding, new requests stay here. Requests of stopping replicas are *leaving*, known
    by their ids alone, until the replicas have stopped; then they are *carried* until others take
    them. ``max_len`` is the longest request in tokens that fits wherever it may go next, whether it
    is holding or not. Not thread safe: whoever calls holds the door's lock.
    """

    def __init__(self, *, max_len: int) -> None:
        self.is_holding = True
        self.max_len = max_len
        self._held: dict[str, RequestStream] = {}
        # Each with the reason if it was aborted meanwhile, else None.
        self._leaving: dict[str, FinishReason | None] = {}
        self._carried = Handover()

    def __len__(self) -> int:
        return len(self._held) + len(self._leaving) + len(self._carried.streams)

    def __contains__(self, request_id: str) -> bool:
        return any(
            request_id in some for some in (self._held, self._leaving, self._carried.streams)
        )

    def begin_to_hold(self, leaving: Iterable[Request], *, max_len: int) -> None:
        """Hold new requests from now on; ``leaving`` are those of replicas that stop.

        Raises:
            RequestError: one of them is longer than ``max_len``; nothing has changed.
        """
        leaving = list(leaving)
        self.narrow(leaving, max_len=max_len)
        self.is_holding = True
        self.see_off(leaving)

    def narrow(self, running: Iterable[Request], *, max_len: int) -> None:
        """Refuse longer requests from now on; those that are ``running`` must fit as well.

        Raises:
            RequestError: one of them is longer than ``max_len``; nothing has changed.
        """
        for request in running:
            if request.max_len > max_len:
                raise RequestError(f"{request.lengths} is more than {max_len}")
        self.max_len = max_len

    def see_off(self, leaving: Iterable[Request]) -> None:
        """Requests of replicas that stop are leaving from now on."""
        self._leaving |= {request.request_id: None for request in leaving}

    def carry(self, left: Handover) -> list[tuple[RequestStream, FinishReason]]:
        """Keep what replicas that were seen off have left, until :meth:`hand_on`.

        Returns the requests that were aborted meanwhile, each with its reason; the caller ends
        them.
        """
        leaving, self._leaving = self._leaving, {}
        aborted = [(left.take_out(name), reason) for name, reason in leaving.items() if reason]
        self._carried = Handover.join([self._carried, left])
        return [(stream, reason) for stream, reason in aborted if stream is not None]

    def hand_on(self) -> Handover:
        """What is carried; it is the caller's from now on."""
        carried, self._carried = self._carried, Handover()
        return carried

    def hold(self, stream: RequestStream, *, max_queue: int | None) -> None:
        """Keep a new request until :meth:`empty`.

        Raises:
            QueueFullError: with those that are let in with it, more than ``max_queue`` would be
                held.
        """
        num_held, num_let_in = len(self._held), stream.request.num_let_in
        if max_queue is not None and num_let_in and num_held + num_let_in > max_queue:
            raise QueueFullError.of(num_held, num_let_in, max_queue)
        self._held[stream.request.request_id] = stream

    def abort(self, request_id: str, reason: FinishReason) -> RequestStream | None:
        """Let a request go; the caller ends it. Unknown ids do nothing. A leaving request ends when
        its replica has stopped, see :meth:`carry`.
        """
        if request_id in self._leaving:
            self._leaving[request_id] = reason
        return self._held.pop(request_id, None) or self._carried.take_out(request_id)

    def empty(self) -> list[RequestStream]:
        """Hold no more; returns the requests that were held, in order of arrival."""
        held, self._held = list(self._held.values()), {}
        self.is_holding = False
        return held


def end_all(
    streams: Iterable[RequestStream], reason: FinishReason, error: str | None = None
) -> None:
    """End requests that no replica has."""
    for stream in streams:
        stream.end(reason, time.monotonic(), error)
