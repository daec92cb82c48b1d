"""Accepted requests that no replica has: held back while none serves, or on their way to one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from engine.replica.stream import RequestStream
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.request import FinishReason, Request

logger = logging.getLogger(__name__)


class Lobby:
    """Where requests are while no replica serves: before the start, and during a reshape.

    While it is open, new requests are held here, and those of stopped replicas are in transit:
    their sequences travel apart (see ``Handover``), the lobby knows their ids. ``max_len`` is the
    longest request in tokens that fits wherever it may go next. Not thread safe: whoever calls
    holds the engine's lock.
    """

    def __init__(self, *, max_len: int) -> None:
        self.is_open = True
        self._max_len = max_len
        self._held: dict[str, RequestStream] = {}
        self._in_transit: set[str] = set()
        self._aborted_in_transit: dict[str, FinishReason] = {}

    def __len__(self) -> int:
        return len(self._held) + len(self._in_transit)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held or request_id in self._in_transit

    def open(self, leaving: Iterable[Request], *, max_len: int) -> None:
        """Hold new requests from now on; ``leaving`` are in transit from replicas that stop.

        Raises:
            RequestError: one of them is longer than ``max_len``; nothing has changed.
        """
        leaving = list(leaving)
        for request in leaving:
            _check_len(request, max_len)
        self.is_open = True
        self._max_len = max_len
        self._in_transit = {request.request_id for request in leaving}

    def hold(self, stream: RequestStream, *, max_queue: int | None) -> None:
        """Keep a new request until :meth:`close`.

        Raises:
            RequestError: it would not fit where it may go next.
            QueueFullError: ``max_queue`` requests are held already.
        """
        _check_len(stream.request, self._max_len)
        if max_queue is not None and len(self._held) >= max_queue:
            raise QueueFullError(f"{len(self._held)} requests wait, max_queue is {max_queue}")
        self._held[stream.request.request_id] = stream

    def abort(self, request_id: str, reason: FinishReason) -> RequestStream | None:
        """Let a request go; one that was held is the caller's to end, unknown ids do nothing.

        One in transit ends when it arrives, see :meth:`take_aborted`.
        """
        if request_id in self._in_transit:
            self._aborted_in_transit[request_id] = reason
        return self._held.pop(request_id, None)

    def take_aborted(self) -> dict[str, FinishReason]:
        """Requests that were aborted in transit, for the replicas that have them now; once."""
        aborted, self._aborted_in_transit = self._aborted_in_transit, {}
        return aborted

    def close(self) -> list[RequestStream]:
        """Nobody is in transit any more; hands out the held requests, in order of arrival."""
        held, self._held = list(self._held.values()), {}
        self._in_transit.clear()
        self.is_open = False
        return held


def end_all(
    streams: Iterable[RequestStream], reason: FinishReason, error: str | None = None
) -> None:
    """End requests that no replica has; one caller's fault does not keep the others waiting."""
    for stream in streams:
        try:
            stream.end(reason, time.monotonic(), error)
        except Exception:
            logger.exception("request %s: its end went astray", stream.request.request_id)


def _check_len(request: Request, max_len: int) -> None:
    if request.max_len > max_len:
        raise RequestError(
            f"request {request.request_id}: {len(request.prompt_ids)} prompt tokens plus "
            f"max_tokens {request.sampling.max_tokens} is more than {max_len}"
        )
