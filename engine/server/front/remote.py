"""The front's end of an engine in another process: text is made here, tokens come from there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import assert_never

import msgspec

from engine.modes.table import ModeTable
from engine.policy.document import EnginePolicy
from engine.policy.knobs import AppliedPolicy, Knob
from engine.replica.stream import OnOutput, output_text, shown_text
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
    CallFailed,
    EngineState,
    FromFront,
    FrontReady,
    FrontSetup,
    Knobs,
    ModeTables,
    OutputRow,
    Outputs,
    Ping,
    Pong,
    Stats,
    Submit,
    ToFront,
)
from engine.spec.errors import RankError, RequestError
from engine.spec.model import ModelConfig
from engine.spec.request import FinishReason, Request, RequestOutput
from engine.spec.settings import Caps
from engine.text.detokenizer import OutputText
from engine.text.tokenizer import Tokenizer
from engine.wire.frames import FrameChannel

ENGINE_GONE = "the engine's process is gone"


class RemoteEngine:
    """A :class:`ServedEngine` over a channel; a thread reads it from :meth:`start` on.

    The first message on the channel must be the engine's state (RankError: it has gone).
    """

    def __init__(self, channel: FrameChannel, setup: FrontSetup, tokenizer: Tokenizer) -> None:
        self._channel = channel
        self._setup = setup
        self._state = _first_state(channel)
        self._tokenizer = tokenizer
        self._is_connected = True
        self._numbers = itertools.count()
        self._streams: dict[int, _TextStream] = {}
        self._by_id: dict[str, int] = {}
        self._pending: dict[int, Future[Answer]] = {}
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
    def policy(self) -> EnginePolicy:
        return self._state.policy

    @property
    def max_model_len(self) -> int:
        return self._state.max_model_len

    @property
    def is_healthy(self) -> bool:
        return self._is_connected and self._state.is_healthy

    def stats(self) -> EngineStats:
        answer = self._call(AskStats(number=next(self._numbers)))
        assert isinstance(answer, Stats), f"the engine answered {answer}"
        return answer.stats

    def capabilities(self) -> list[Knob]:
        answer = self._call(AskKnobs(number=next(self._numbers)))
        assert isinstance(answer, Knobs), f"the engine answered {answer}"
        return answer.knobs

    def mode_tables(self) -> list[ModeTable | None]:
        answer = self._call(AskModeTables(number=next(self._numbers)))
        assert isinstance(answer, ModeTables), f"the engine answered {answer}"
        return answer.tables

    # -- commands ------------------------------------------------------------------------------

    def submit(self, request: Request, on_output: OnOutput) -> Future[None]:
        """Send a request; the future tells whether it was accepted. Outputs may come before."""
        number, accepted = next(self._numbers), Future[None]()
        # Before anything is remembered: a value that cannot be sent must leave nothing behind.
        frame = _encode_request(Submit(number=number, request=request))
        accepted.set_running_or_notify_cancel()  # it cannot be cancelled; ``abort`` can
        text = output_text(self._tokenizer.stream(), request.sampling)
        self._streams[number] = _TextStream(request.request_id, on_output, text)
        self._by_id[request.request_id] = number

        def on_answer(answer: Future[Answer]) -> None:
            error = answer.exception()
            if error is None:
                accepted.set_result(None)
            else:
                self._forget(number)
                accepted.set_exception(error)

        self._send_call(number, frame).add_done_callback(on_answer)
        return accepted

    def abort(self, request_id: str, *, reason: FinishReason = FinishReason.ABORT) -> None:
        number = self._by_id.get(request_id)
        if number is not None:
            self._send(Abort(number=number, reason=reason))

    def apply(self, policy: EnginePolicy, *, expected: EnginePolicy | None = None) -> AppliedPolicy:
        number = next(self._numbers)
        answer = self._call(Apply(number=number, policy=policy, expected=expected))
        assert isinstance(answer, Applied), f"the engine answered {answer}"
        return answer.applied

    def say_ready(self) -> None:
        """Tell the engine's process that connections are accepted, on the loop that does so.

        That loop is what answers from now on when the engine asks for a sign of life.
        """
        self._loop = asyncio.get_running_loop()
        self._send(FrontReady())

    # -- sending -------------------------------------------------------------------------------

    def _call(self, ask: Ask) -> Answer:
        return self._send_call(ask.number, msgspec.msgpack.encode(ask)).result()

    def _send_call(self, number: int, frame: bytes) -> Future[Answer]:
        answer: Future[Answer] = Future()
        self._pending[number] = answer
        self._send_frame(frame)
        if not self._is_connected:
            self._fail_pending()
        return answer

    def _send(self, message: FromFront) -> None:
        self._send_frame(msgspec.msgpack.encode(message))

    def _send_frame(self, frame: bytes) -> None:
        with self._send_lock:
            try:
                self._channel.send(frame)
            except OSError:  # the reader notices, and fails what waits
                self._is_connected = False

    # -- the reader thread ---------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                self._take(self._decoder.decode(frame))
        finally:
            self._is_connected = False
            self._fail_pending()
            for number in list(self._streams):
                stream = self._forget(number)
                if stream is not None:  # its submission may have failed meanwhile
                    stream.fail(ENGINE_GONE)

    def _take(self, message: ToFront) -> None:
        match message:
            case Outputs():
                for row in message.rows:
                    self._take_output(row)
            case EngineState():
                self._state = message
            case Accepted() | Applied() | Stats() | Knobs() | ModeTables():
                self._pending.pop(message.number).set_result(message)
            case CallFailed():
                self._pending.pop(message.number).set_exception(message.error.to_error())
            case Ping():
                self._answer_ping()
            case FrontSetup():
                raise AssertionError("a front is set up once")
            case _:
                assert_never(message)

    def _answer_ping(self) -> None:
        # By the event loop: this thread would also answer for one that hangs.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the front is ending
                self._loop.call_soon_threadsafe(self._send, Pong())

    def _take_output(self, row: OutputRow) -> None:
        stream = self._streams.get(row.number)
        if stream is None:  # its stop string was found before this token
            return
        if stream.push(row):
            self._forget(row.number)
            if row.finish_reason is None:
                self._send(Abort(number=row.number, reason=FinishReason.STOP))

    def _forget(self, number: int) -> _TextStream | None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._by_id.pop(stream.request_id, None)
        return stream

    def _fail_pending(self) -> None:
        for number in list(self._pending):
            future = self._pending.pop(number, None)
            if future is not None:
                future.set_exception(RankError(ENGINE_GONE))


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


class _TextStream:
    """One request's way from rows of tokens to outputs with text."""

    def __init__(self, request_id: str, on_output: OnOutput, text: OutputText) -> None:
        self.request_id = request_id
        self._on_output: Callable[[RequestOutput], None] = on_output
        self._text = text

    def push(self, row: OutputRow) -> bool:
        """Hand one row on with its text; whether it was the last."""
        text, is_stopped, reason = "", False, row.finish_reason
        if row.token_ids:
            (token_id,) = row.token_ids
            text, is_stopped = shown_text(self._text, token_id, reason)
        elif reason is not None:
            text, _ = self._text.flush()
        reason = FinishReason.STOP if is_stopped else reason
        self._on_output(
            RequestOutput(
                request_id=self.request_id,
                token_ids=row.token_ids,
                text=text,
                finish_reason=reason,
                token_s=row.token_s,
                error=row.error,
                scheduled_s=row.scheduled_s,
                logprobs=row.logprobs,
            )
        )
        return reason is not None

    def fail(self, why: str) -> None:
        """End without a token because the engine cannot say anything any more."""
        self._on_output(
            RequestOutput(
                request_id=self.request_id,
                token_ids=(),
                text=self._text.flush()[0],
                finish_reason=FinishReason.ERROR,
                token_s=time.monotonic(),
                error=why,
            )
        )
