"""Requests that a replica has accepted and not yet ended."""

from __future__ import annotations

import threading
import time

from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.scheduler.heap import NamedHeap
from engine.spec.request import FinishReason, Request


class AcceptedRequests:
    """A replica's register of requests, each as the stream that knows its caller, deadline and
    stamps.

    Any thread may enter requests and ask; the replica's own thread ends them. Ended ones are
    recorded in ``telemetry``.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.streams: dict[str, RequestStream] = {}
        self._telemetry = telemetry
        # Request ids in the order of their deadlines.
        self._deadlines: NamedHeap[float] = NamedHeap()
        self._lock = threading.Lock()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.streams

    def has(self, request: Request) -> bool:
        """Whether this very request is in progress; a later one may have taken its id."""
        stream = self.streams.get(request.request_id)
        return stream is not None and stream.request is request

    def list_requests(self) -> list[Request]:
        return [stream.request for stream in list(self.streams.values())]

    def enter(self, stream: RequestStream) -> None:
        """Take in one more, whose id is not in use."""
        request = stream.request
        with self._lock:
            self.streams[request.request_id] = stream
            if request.deadline_s is not None:
                self._deadlines.push(request.request_id, request.deadline_s)

    def pop_expired(self, now_s: float) -> list[str]:
        """Those whose deadline is ``now_s`` or earlier, earliest first; each is told once."""
        expired: list[str] = []
        with self._lock:
            while (first := self._deadlines.first) is not None and first[1] <= now_s:
                expired.append(self._deadlines.pop())
        return expired

    def end(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        """Forget a request and tell its caller that it is over; unknown ids do nothing."""
        stream = self.streams.get(request_id)
        if stream is None:  # ended already when the replica gave up
            return
        self.forget(stream, reason)
        stream.end(reason, time.monotonic(), error)

    def forget(self, stream: RequestStream, reason: FinishReason) -> None:
        """Record a request that is over, and free its id.

        This happens before its caller is told, so that the caller may use the id again and finds
        the request counted.
        """
        if self.withdraw(stream):
            self._telemetry.record_finish(reason, stream.timing(reason))

    def withdraw(self, stream: RequestStream) -> bool:
        """Forget a request that never began; returns whether it was still here."""
        request_id = stream.request.request_id
        with self._lock:
            if self.streams.get(request_id) is not stream:
                return False
            del self.streams[request_id]
            self._deadlines.discard(request_id)
        return True

    def take_streams(self) -> dict[str, RequestStream]:
        """Hand over all streams without ending any; none is left here."""
        with self._lock:
            taken = dict(self.streams)
            self.streams.clear()
            self._deadlines = NamedHeap()
        return taken
