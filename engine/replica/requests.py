"""Requests that a replica has accepted and not yet ended."""

from __future__ import annotations

import logging
import threading
import time

from engine.replica.deadlines import Deadlines
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.spec.request import FinishReason, Request

logger = logging.getLogger(__name__)


class AcceptedRequests:
    """Their ways back to callers, their deadlines, and how much they may still ask for.

    Any thread may enter requests and ask; the replica's own ends them. Ended ones are recorded
    in ``telemetry``.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.streams: dict[str, RequestStream] = {}
        self._telemetry = telemetry
        self._deadlines = Deadlines()
        self._load_tokens = 0
        self._lock = threading.Lock()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.streams

    @property
    def load_tokens(self) -> int:
        """Tokens they may still grow to."""
        return self._load_tokens

    def list_requests(self) -> list[Request]:
        return [stream.request for stream in list(self.streams.values())]

    def enter(self, stream: RequestStream) -> None:
        """Take in one more; its deadline counts from :meth:`watch` on."""
        with self._lock:
            self.streams[stream.request.request_id] = stream
            self._load_tokens += stream.request.max_len

    def watch(self, request: Request) -> None:
        """Heed its deadline, if it has one."""
        if request.deadline_s is not None:
            self._deadlines.add(request.request_id, request.deadline_s)

    def pop_expired(self) -> list[str]:
        """Those whose deadline has passed by now; told once."""
        return self._deadlines.pop_expired(time.monotonic())

    def end(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        """Tell the caller that it is over, and forget it; unknown ids do nothing."""
        if request_id not in self.streams:  # ended already when the replica gave up
            return
        try:
            self.streams[request_id].end(reason, time.monotonic(), error)
        except Exception:  # a caller's fault must not end the others' requests
            logger.exception("request %s: its end could not be handed out", request_id)
        self.forget(request_id, reason)

    def forget(self, request_id: str, reason: FinishReason) -> None:
        """Its caller knows that it is over."""
        with self._lock:
            stream = self.streams.pop(request_id)
            self._load_tokens -= stream.request.max_len
        self._deadlines.discard(request_id)
        self._telemetry.record_finish(reason, stream.timing(reason))

    def take_streams(self) -> dict[str, RequestStream]:
        """Hand all of them over; none is ended, and none is left."""
        with self._lock:
            taken = dict(self.streams)
            self.streams.clear()
            self._load_tokens = 0
        return taken
