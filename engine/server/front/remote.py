"""The front's end of an engine in another process: text is made here, tokens come from there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from engine.modes.table import ModeTable
from engine.policy.document import EnginePolicy
from engine.policy.knobs import AppliedPolicy, Knob
from engine.replica.stream import OnOutput, RequestStream
from engine.replica.telemetry import EngineStats
from engine.server.front.messages import (
    Abort,
    Accepted,
    Answer,
    Applied,
    Apply,
    Ask,
    AskKnobs,
    AskModeTables,
    AskStats,
    BeginStream,
    CallFailed,
    EngineState,
    FromFront,
    FrontReady,
    FrontSetup,
    Knobs,
    Lend,
    ModeTables,
    OutputRow,
    Outputs,
    Ping,
    Pong,
    Preview,
    Previewed,
    Stats,
    Submit,
    TakeBack,
    ToFront,
)
from engine.spec.errors import RankError, RequestError
from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request
from engine.spec.settings import Caps
from engine.text.tokenizer import Tokenizer
from engine.transition.costs import DEFAULT_LIMITS, PricedTransition, TransitionLimits
from engine.wire.frames import FrameChannel

ENGINE_GONE = "the engine's process is gone"
AnswerT = TypeVar("AnswerT", Applied, Previewed, Stats, Knobs, ModeTables)


class RemoteEngine:
    """A :class:`ServedEngine` over a channel; a thread reads it from :meth:`start` on.

    The first message on the channel must be the engine's state (RankError: it has gone).
    """

    def __init__(self, channel: FrameChannel, setup: FrontSetup, tokenizer: Tokenizer) -> None:
        self._channel = channel
        self._setup = setup
        self._state = _first_state(channel)
        self._tokenizer = tokenizer
        self._is_connected = self._is_reading = True
        self._numbers = itertools.count()
        # Calls and requests that the engine owes an answer or an end, by number. Any thread adds
        # one; the reader removes it, or the thread that failed to send its message.
        self._owed: dict[int, Future[Answer] | _RemoteRequest] = {}
        # The request that each id stands for, while the engine owes it something.
        self._number_of: dict[str, int] = {}
        self._decoder = msgspec.msgpack.Decoder(ToFront)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._send_lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="engine-reader", daemon=True)

    def start(self) -> None:
        """Begin to read what the engine says."""
        self._thread.start()

    def close(self) -> None:
        """End the thread once the engine has hung up, and close the channel."""
        self._thread.join()
        self._channel.close()

    # -- questions -----------------------------------------------------------------------------

    @property
    def model_dir(self) -> Path:
        return Path(self._setup.model_dir)

    @property
    def model(self) -> ModelConfig:
        return self._setup.model

    @property
    def envelope(self) -> Caps:
        return self._setup.envelope

    @property
    def inventory(self) -> Inventory:
        return self._setup.inventory

    @property
    def paced_as(self) -> str | None:
        return self._setup.paced_as

    @property
    def policy(self) -> EnginePolicy:
        return self._state.policy

    @property
    def held_plan(self) -> ParallelPlan:
        return self._state.held_plan

    @property
    def max_model_len(self) -> int:
        return self._state.max_model_len

    @property
    def is_healthy(self) -> bool:
        return self._is_connected and self._state.is_healthy

    def stats(self) -> EngineStats:
        return self._call(Stats, AskStats(number=next(self._numbers))).stats

    def capabilities(self) -> list[Knob]:
        return self._call(Knobs, AskKnobs(number=next(self._numbers))).knobs

    def mode_tables(self) -> list[ModeTable | None]:
        return self._call(ModeTables, AskModeTables(number=next(self._numbers))).tables

    # -- commands ------------------------------------------------------------------------------

    def submit(self, request: Request, on_output: OnOutput) -> Future[None]:
        """Send a request; the future tells whether it was accepted. Outputs may come before."""
        number = next(self._numbers)
        # Encoded before anything is remembered: a value that cannot be sent must leave nothing
        # behind.
        frame = _encode_request(Submit(number=number, request=request))
        text = self._tokenizer.stream(after=request.prompt_ids)
        sent = _RemoteRequest(stream=RequestStream(request, on_output, text))
        sent.accepted.set_running_or_notify_cancel()  # it cannot be cancelled; ``abort`` can
        # An id that is in use stays the first request's: the engine will refuse this one.
        self._number_of.setdefault(request.request_id, number)
        self._send_owed(number, sent, frame)
        return sent.accepted

    def abort(self, request_id: str, *, reason: FinishReason = FinishReason.ABORT) -> None:
        if request_id in self._number_of:  # else it was refused, or is over
            self._send(Abort(request_id=request_id, reason=reason))

    def apply(
        self,
        policy: EnginePolicy,
        *,
        expected: EnginePolicy | None = None,
        limits: TransitionLimits = DEFAULT_LIMITS,
    ) -> AppliedPolicy:
        number = next(self._numbers)
        ask = Apply(number=number, policy=policy, expected=expected, limits=limits)
        return self._call(Applied, ask).applied

    def preview(
        self, policy: EnginePolicy, *, limits: TransitionLimits = DEFAULT_LIMITS
    ) -> PricedTransition | None:
        ask = Preview(number=next(self._numbers), policy=policy, limits=limits)
        return self._call(Previewed, ask).found

    def say_ready(self) -> None:
        """Tell the engine's process that connections are accepted, on the loop that does so.

        That loop is what answers from now on when the engine asks for a sign of life.
        """
        self._loop = asyncio.get_running_loop()
        self._send(FrontReady())

    # -- clients -------------------------------------------------------------------------------

    def lend(self, number: int, fd: int) -> None:
        """Let the engine's process hold a client's socket too, until :meth:`take_back`.

        A socket that cannot be lent, for example because its client has just gone, is silently kept
        here. If the line itself is at fault, the next message will tell.
        """
        frame = msgspec.msgpack.encode(Lend(client=number))
        with self._send_lock, contextlib.suppress(OSError):
            self._channel.send(frame, [fd])

    def begin_stream(self, number: int, *, is_chunked: bool) -> None:
        self._send(BeginStream(client=number, is_chunked=is_chunked))

    def take_back(self, number: int) -> None:
        self._send(TakeBack(client=number))

    # -- sending -------------------------------------------------------------------------------

    def _call(self, kind: type[AnswerT], ask: Ask) -> AnswerT:
        owed: Future[Answer] = Future()
        self._send_owed(ask.number, owed, msgspec.msgpack.encode(ask))
        answer = owed.result()
        assert isinstance(answer, kind), f"the engine answered {answer}"
        return answer

    def _send_owed(self, number: int, owed: Future[Answer] | _RemoteRequest, frame: bytes) -> None:
        self._owed[number] = owed
        # When the reader ends, it fails what is owed at that time; later messages fail here.
        if not self._send_frame(frame) or not self._is_reading:
            self._fail(number, RankError(ENGINE_GONE))

    def _send(self, message: FromFront) -> None:
        self._send_frame(msgspec.msgpack.encode(message))

    def _send_frame(self, frame: bytes) -> bool:
        """Send a frame; whether it went out."""
        with self._send_lock:
            try:
                self._channel.send(frame)
            except OSError:  # the reader notices, and fails what waits
                self._is_connected = False
                return False
        return True

    def _fail(self, number: int, error: Exception) -> None:
        """End what the engine owes under ``number``, unless that is over already."""
        match self._strike_off(number):
            case Future() as answer:
                answer.set_exception(error)
            case _RemoteRequest() as sent:
                sent.fail(error)

    def _strike_off(self, number: int) -> Future[Answer] | _RemoteRequest | None:
        """What was owed under ``number``, and is no more."""
        owed = self._owed.pop(number, None)
        if isinstance(owed, _RemoteRequest):
            request_id = owed.stream.request.request_id
            if self._number_of.get(request_id) == number:
                del self._number_of[request_id]
        return owed

    # -- the reader thread ---------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                self._take(self._decoder.decode(frame))
        finally:
            self._is_connected = self._is_reading = False
            for number in list(self._owed):
                self._fail(number, RankError(ENGINE_GONE))

    def _take(self, message: ToFront) -> None:
        match message:
            case Outputs():
                for row in message.rows:
                    self._take_output(row)
            case EngineState():
                self._state = message
            case Accepted():
                sent = self._owed.get(message.number)
                if isinstance(sent, _RemoteRequest):  # else it has ended before this was said
                    sent.accepted.set_result(None)
            case Applied() | Previewed() | Stats() | Knobs() | ModeTables():
                answer = self._strike_off(message.number)
                assert isinstance(answer, Future), f"{message} answers a request"
                answer.set_result(message)
            case CallFailed():
                self._fail(message.number, message.error.to_error())
            case Ping():
                self._answer_ping()
            case FrontSetup():
                raise AssertionError("a front is set up once")
            case _:
                assert_never(message)

    def _answer_ping(self) -> None:
        # The event loop must answer, because this thread would answer even while the loop hangs.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the front is ending
                self._loop.call_soon_threadsafe(self._send, Pong())

    def _take_output(self, row: OutputRow) -> None:
        sent, reason = self._owed.get(row.number), row.finish_reason
        if sent is None:  # its stop string was found before this token
            return
        assert isinstance(sent, _RemoteRequest), f"{row} answers a call"
        is_stopped = sent.push(row)
        if is_stopped or reason is not None:
            self._strike_off(row.number)
            if not sent.accepted.done():  # what has an end was accepted; nobody else will say so
                sent.accepted.set_result(None)
            if reason is None:
                request_id = sent.stream.request.request_id
                self._send(Abort(request_id=request_id, reason=FinishReason.STOP))


@dataclass(frozen=True, kw_only=True)
class _RemoteRequest:
    """A request that was sent to the engine, and whether it was ``accepted`` there."""

    stream: RequestStream
    accepted: Future[None] = field(default_factory=Future)

    def push(self, row: OutputRow) -> bool:
        """Hand one row on with its text; returns whether its token completed a stop string."""
        stream = self.stream
        stream.scheduled_s = row.scheduled_s
        if row.token_ids:
            (token_id,) = row.token_ids
            if row.prompt_logprobs:
                stream.add_prompt_logprobs(0, row.prompt_logprobs)
            output = stream.take(token_id, row.finish_reason, row.token_s, *row.logprobs)
            stream.hand_out(output)
            return output.finish_reason is not row.finish_reason
        assert row.finish_reason is not None, "a row without a token is the last"
        stream.end(row.finish_reason, row.token_s, row.error)
        return False

    def fail(self, error: Exception) -> None:
        """The engine refuses it, or cannot say anything any more."""
        if self.accepted.done():
            self.stream.end(FinishReason.ERROR, time.monotonic(), str(error))
        else:
            self.accepted.set_exception(error)


def _encode_request(message: Submit) -> bytes:
    try:
        return msgspec.msgpack.encode(message)
    except (OverflowError, UnicodeEncodeError) as error:
        raise RequestError(f"a value of the request cannot be sent: {error}") from error


def _first_state(channel: FrameChannel) -> EngineState:
    frame = channel.receive()
    if frame is None:
        raise RankError(ENGINE_GONE)
    return msgspec.msgpack.decode(frame, type=EngineState)
