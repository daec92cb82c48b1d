"""The door of an engine: which replicas serve, who waits while none does, where requests go."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter

from engine.admission import AdmissionRule
from engine.lobby import Lobby, end_all
from engine.replica.handover import Handover
from engine.replica.replica import Replica
from engine.replica.stream import RequestStream
from engine.spec.admission import Admission, Refusal
from engine.spec.errors import (
    EngineError,
    OverloadError,
    QueueFullError,
    RankError,
    RequestError,
)
from engine.spec.request import FinishReason, check_length

NOBODY = "no replica goes on with it"


class Door:
    """Lets requests in to the replicas. It is shut until the first replicas serve, and while all of
    them are being replaced: requests then wait in the lobby. Replicas may also join or leave while
    others serve. One that leaves takes no new requests and finishes those it has.

    Any thread may call. One lock guards replicas and lobby together, so that a request is always
    in just one of them, and an abort finds it.
    """

    def __init__(self, *, max_len: int) -> None:
        self._lobby = Lobby(max_len=max_len)
        self._replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self._failure: str | None = None
        self._admission = AdmissionRule()
        self._refused: Counter[Refusal] = Counter()
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
        """The replicas that have requests, and how many requests the lobby has."""
        with self._lock:
            return [*self._replicas, *self._leaving], len(self._lobby)

    def list_replicas(self) -> list[Replica]:
        """The replicas that take new requests."""
        with self._lock:
            return list(self._replicas)

    @property
    def refused(self) -> dict[Refusal, int]:
        """How many requests were turned away although nothing was wrong with them, by reason."""
        with self._lock:
            return {reason: self._refused[reason] for reason in Refusal}

    # -- requests ------------------------------------------------------------------------------

    def accept(self, stream: RequestStream, *, max_queue: int | None) -> None:
        """Hand a new request to the replica with the least to do, or to another where its queue is
        full, or hold it.

        Raises:
            RequestError: too long, or its id is in use.
            OverloadError: more come than the policy admits.
            QueueFullError: there is no room in the queues for it and those that are let in with
                it. These find room afterwards, whoever came between.
            RankError: no replica serves.
        """
        request = stream.request
        with self._lock:
            name = request.request_id
            if name in self._lobby or any(r.has(name) for r in self._everyone):
                raise RequestError(f"request id {name!r} is in use")
            check_length(request, self._lobby.max_len)
            try:
                self._let_in_one(stream, max_queue)
            except OverloadError:
                self._refused[Refusal.ADMISSION] += request.num_let_in
                raise
            except QueueFullError:
                # If the first request of a call is turned away, so are its others, unseen.
                self._refused[Refusal.QUEUE_FULL] += request.num_let_in
                raise

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request at the next step boundary, or at once where none runs; unknown ids do
        nothing.
        """
        # Posted under the lock, so that it reaches a replica before a reshape empties it.
        with self._lock:
            held = self._lobby.abort(request_id, reason)
            for replica in self._everyone:
                replica.abort(request_id, reason)
        if held is not None:
            end_all([held], reason)

    def admit(self, admission: Admission | None) -> None:
        """Let in so many requests from now on; None: whatever comes."""
        with self._lock:
            self._admission.follow(admission, time.monotonic())

    # -- replicas ------------------------------------------------------------------------------

    def shut(self, *, max_len: int) -> list[Replica]:
        """Hold new requests from now on, and take the replicas out of service.

        ``max_len`` is the longest request, in tokens, that fits the coming replicas.

        Raises:
            RequestError: one in progress is longer; nothing has changed.
        """
        with self._lock:
            leaving = [request for r in self._replicas for request in r.list_requests()]
            self._lobby.begin_to_hold(leaving, max_len=min(self._lobby.max_len, max_len))
            replicas, self._replicas = self._replicas, []
        return replicas

    def carry(self, left: Handover) -> None:
        """Keep the unfinished requests of replicas that went out of service until :meth:`open`."""
        with self._lock:
            aborted = self._lobby.carry(left)
        _end_aborted(aborted)

    def open(self, replicas: list[Replica], *, max_len: int) -> None:
        """Deal the sequences that earlier replicas left unfinished to ``replicas``, and let held
        requests in."""
        with self._lock:
            self._replicas = replicas
            self._lobby.max_len = max_len
            lost = _deal(self._lobby.hand_on(), replicas)
            refused = self._let_in(self._lobby.empty())
        # Callbacks may call the engine back.
        end_all(lost, FinishReason.ERROR, NOBODY)
        for stream, why in refused:
            end_all([stream], FinishReason.ERROR, why)

    # -- some come and go, others serve ----------------------------------------------------------

    def limit(self, max_len: int) -> None:
        """Refuse requests longer than ``max_len`` tokens; those in progress must fit as well.

        Raises:
            RequestError: one in progress is longer; nothing has changed.
        """
        with self._lock:
            running = [request for r in self._everyone for request in r.list_requests()]
            self._lobby.narrow(running, max_len=min(self._lobby.max_len, max_len))

    def unlimit(self, max_len: int) -> None:
        """``max_len`` is the longest request from now on: every replica that serves takes it."""
        with self._lock:
            self._lobby.max_len = max_len

    def join(self, replicas: list[Replica]) -> None:
        """They take new requests from now on."""
        with self._lock:
            self._replicas += replicas

    def dismiss(self, replicas: list[Replica]) -> None:
        """They take no new requests from now on."""
        with self._lock:
            self._replicas = [r for r in self._replicas if r not in replicas]
            self._leaving += replicas

    def see_off(self, replica: Replica) -> None:
        """Note that a dismissed replica is about to stop; the caller hands over what it leaves."""
        with self._lock:
            self._leaving.remove(replica)
            self._lobby.see_off(replica.list_requests())

    def hand_over(self, left: Handover) -> None:
        """Let serving replicas go on with what a replica that was seen off has left."""
        with self._lock:
            aborted = self._lobby.carry(left)
            heirs = sorted(self._healthy, key=lambda r: (r.is_recovering, r.load_tokens))
            lost = _deal(self._lobby.hand_on(), heirs)
        _end_aborted(aborted)
        end_all(lost, FinishReason.ERROR, NOBODY)

    # -- the end -------------------------------------------------------------------------------

    def close(self, why: str | None = None) -> tuple[list[Replica], list[RequestStream]]:
        """Shut for good; ``why`` is what went wrong, where something did.

        Returns the replicas that served and the requests that no replica has; the caller ends both.
        """
        with self._lock:
            self._failure = why or self._failure
            replicas, self._replicas, self._leaving = self._everyone, [], []
            waiting = [*self._lobby.hand_on().streams.values(), *self._lobby.empty()]
        return replicas, waiting

    # -- parts ---------------------------------------------------------------------------------

    @property
    def _everyone(self) -> list[Replica]:
        return [*self._replicas, *self._leaving]

    @property
    def _healthy(self) -> list[Replica]:
        return [r for r in self._replicas if r.failure is None]

    def _let_in_one(self, stream: RequestStream, max_queue: int | None) -> None:
        """Hand it on if so many are admitted."""
        self._admission.check(stream.request, time.monotonic())
        if self._lobby.is_holding:
            self._lobby.hold(stream, max_queue=max_queue)
        else:
            self._submit(stream, stream.request.num_let_in)
        self._admission.take(stream.request)

    def _submit(self, stream: RequestStream, num_let_in: int) -> None:
        """Hand it to the replica with the least to do that has room for its share of
        ``num_let_in`` requests. One whose loop ends just now takes none, and is unhealthy then.

        One whose ranks are being replaced gets a request only where no other serves: that may take
        as long as a program's start.
        """
        full: QueueFullError | None = None
        healthy = sorted(self._healthy, key=lambda r: (r.is_recovering, r.load_tokens))
        share = math.ceil(num_let_in / max(1, len(healthy)))
        for replica in healthy:
            if full is not None and replica.is_recovering:
                break
            try:
                replica.submit(stream, num_let_in=share)
            except QueueFullError as error:
                full = full or error
            except RankError:
                if replica.failure is None:
                    raise
            else:
                return
        if full is not None:
            raise full
        reasons = {str(r.failure) for r in self._replicas} | {self._failure or ""}
        failures = "; ".join(sorted(reasons - {""}))
        raise RankError(f"the engine is unhealthy: {failures or 'it is closed'}")

    def _let_in(self, held: list[RequestStream]) -> list[tuple[RequestStream, str]]:
        """Hand held requests to the replicas; returns those that they refuse, and why."""
        refused = []
        for stream in held:
            try:
                self._submit(stream, 0)
            except EngineError as error:
                refused.append((stream, str(error)))
        return refused


def _deal(left: Handover, heirs: list[Replica]) -> list[RequestStream]:
    """Deal what other replicas have left to ``heirs``; returns the requests that nobody takes."""
    if not heirs:
        return list(left.streams.values())
    shares = zip(heirs, left.deal(len(heirs)), strict=True)
    return [stream for heir, share in shares for stream in heir.adopt(share)]


def _end_aborted(aborted: list[tuple[RequestStream, FinishReason]]) -> None:
    for stream, reason in aborted:
        end_all([stream], reason)
