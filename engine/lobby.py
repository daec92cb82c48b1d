"""Accepted requests that no replica has: held back while none serves, or on their way to one."""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.replica.stream import RequestStream
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.request import FinishReason, Request


class Lobby:
    """Where requests are while no replica has them: before the start, and during a reshape.

    While it is holding, new requests stay here, and those of stopped replicas are in transit:
    their sequences travel apart (see ``Handover``), the lobby knows their ids. ``max_len`` is the
    longest request in tokens that fits wherever it may go next, whether it is holding or not.
    Not thread safe: whoever calls holds the door's lock.
    """

    def __init__(self, *, max_len: int) -> None:
        self.is_holding = True
        self.max_len = max_len
        self._held: dict[str, RequestStream] = {}
        # With the reason for which one was aborted meanwhile.
        self._in_transit: dict[str, FinishReason | None] = {}

    def __len__(self) -> int:
        return len(self._held) + len(self._in_transit)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held or request_id in self._in_transit

    def begin_to_hold(self, leaving: Iterable[Request], *, max_len: int) -> None:
        """Hold new requests from now on; ``leaving`` are in transit from replicas that stop.

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
        """Requests of replicas that stop are in transit from now on."""
        self._in_transit |= {request.request_id: None for request in leaving}

    def greet(self) -> dict[str, FinishReason]:
        """Nobody is in transit any more; why each that was aborted meanwhile was, by id. The
        replicas that have them now are to end them.
        """
        arrived, self._in_transit = self._in_transit, {}
        return {name: reason for name, reason in arrived.items() if reason is not None}

    def hold(self, stream: RequestStream, *, max_queue: int | None) -> None:
        """Keep a new request until :meth:`empty`.

        Raises:
            QueueFullError: ``max_queue`` requests are held already.
        """
        if max_queue is not None and len(self._held) >= max_queue:
            raise QueueFullError(f"{len(self._held)} requests wait, max_queue is {max_queue}")
        self._held[stream.request.request_id] = stream

    def abort(self, request_id: str, reason: FinishReason) -> RequestStream | None:
        """Let a request go; one that was held is the caller's to end, unknown ids do nothing.

        One in transit ends when it arrives, see :meth:`empty`.
        """
        if request_id in self._in_transit:
            self._in_transit[request_id] = reason
        return self._held.pop(request_id, None)

    def empty(self) -> tuple[list[RequestStream], dict[str, FinishReason]]:
        """Nobody waits here and nobody is in transit any more.

        Hands out the requests that were held, in order of arrival, and for those that were
        aborted in transit, by id, why (see :meth:`greet`).
        """
        held, self._held = list(self._held.values()), {}
        self.is_holding = False
        return held, self.greet()


def end_all(
    streams: Iterable[RequestStream], reason: FinishReason, error: str | None = None
) -> None:
    """End requests that no replica has."""
    for stream in streams:
        stream.end(reason, time.monotonic(), error)
