"""The door of an engine: which replicas serve, who waits while none does, where requests go."""

from __future__ import annotations

import threading

from engine.lobby import Lobby, end_all
from engine.replica.handover import Handover
from engine.replica.replica import Replica
from engine.replica.stream import RequestStream
from engine.spec.errors import EngineError, RankError, RequestError
from engine.spec.request import FinishReason, check_length


class Door:
    """Lets requests in to the replicas. It is shut until the first replicas serve, and while one
    set of them makes place for another: then requests wait in the lobby.

    Any thread may call. One lock guards replicas and lobby together, so that a request is always
    in just one of them, and an abort finds it.
    """

    def __init__(self, *, max_len: int) -> None:
        self._lobby = Lobby(max_len=max_len)
        self._replicas: list[Replica] = []
        self._failure: str | None = None
        self._lock = threading.Lock()

    # -- questions -----------------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why no replica will ever serve here again, None while some may."""
        return self._failure

    @property
    def is_healthy(self) -> bool:
        """Whether every replica serves."""
        with self._lock:
            return self._failure is None and all(r.failure is None for r in self._replicas)

    def look_in(self) -> tuple[list[Replica], int]:
        """The replicas that serve, and how many requests the lobby has."""
        with self._lock:
            return list(self._replicas), len(self._lobby)

    def list_replicas(self) -> list[Replica]:
        """The replicas that serve."""
        return self.look_in()[0]

    # -- requests ------------------------------------------------------------------------------

    def accept(self, stream: RequestStream, *, max_queue: int | None) -> None:
        """Hand a new request to the replica with the least to do, or hold it.

        Raises:
            RequestError: too long, or its id is in use.
            QueueFullError: ``max_queue`` requests wait already.
            RankError: no replica serves.
        """
        request = stream.request
        with self._lock:
            name = request.request_id
            if name in self._lobby or any(r.has(name) for r in self._replicas):
                raise RequestError(f"request id {name!r} is in use")
            check_length(request, self._lobby.max_len)
            if self._lobby.is_holding:
                self._lobby.hold(stream, max_queue=max_queue)
            else:
                self._route().submit(stream)

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request at the next step boundary; unknown ids do nothing."""
        # Posted under the lock, so that it reaches a replica before a reshape empties it.
        with self._lock:
            held = self._lobby.abort(request_id, reason)
            for replica in self._replicas:
                replica.abort(request_id, reason)
        if held is not None:
            end_all([held], reason)

    # -- replicas ------------------------------------------------------------------------------

    def shut(self, *, max_len: int) -> list[Replica]:
        """Hold new requests from now on, and take the replicas out of service.

        ``max_len`` is the longest request in tokens that fits the replicas to come.

        Raises:
            RequestError: one in progress is longer; nothing has changed.
        """
        with self._lock:
            leaving = [request for r in self._replicas for request in r.list_requests()]
            self._lobby.begin_to_hold(leaving, max_len=min(self._lobby.max_len, max_len))
            replicas, self._replicas = self._replicas, []
        return replicas

    def open(self, replicas: list[Replica], left: Handover, *, max_len: int) -> None:
        """Deal the sequences that others have left to ``replicas``, and let held requests in."""
        for replica, share in zip(replicas, left.deal(len(replicas)), strict=True):
            replica.adopt(share)
        with self._lock:
            self._replicas = replicas
            held, aborted = self._lobby.empty()
            self._lobby.max_len = max_len
            for request_id, reason in aborted.items():
                for replica in replicas:
                    replica.abort(request_id, reason)
            refused = self._let_in(held)
        # Callbacks may call the engine back.
        for stream, why in refused:
            end_all([stream], FinishReason.ERROR, why)

    def close(self, why: str | None = None) -> tuple[list[Replica], list[RequestStream]]:
        """Shut for good; ``why`` is what went wrong, where something did.

        Hands out the replicas that served, and the requests that were held: both are the caller's
        to end.
        """
        with self._lock:
            self._failure = why or self._failure
            replicas, self._replicas = self._replicas, []
            held, _ = self._lobby.empty()
        return replicas, held

    # -- parts ---------------------------------------------------------------------------------

    def _route(self) -> Replica:
        """The healthy replica with the fewest tokens to do.

        One whose ranks are being replaced gets a request only where no other serves: that may take
        as long as a program's start.
        """
        healthy = [r for r in self._replicas if r.failure is None]
        if not healthy:
            reasons = {str(r.failure) for r in self._replicas} | {self._failure or ""}
            failures = "; ".join(sorted(reasons - {""}))
            raise RankError(f"the engine is unhealthy: {failures or 'it is closed'}")
        return min(healthy, key=lambda r: (r.is_recovering, r.load_tokens))

    def _let_in(self, held: list[RequestStream]) -> list[tuple[RequestStream, str]]:
        """Hand requests that were held to the replicas; those they refuse, and why."""
        refused = []
        for stream in held:
            try:
                self._route().submit(stream, has_waited=True)
            except EngineError as error:
                refused.append((stream, str(error)))
        return refused
