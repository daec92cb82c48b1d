"""The engine's end of a front process: requests come in and outputs go out off the step loop."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import assert_never

import msgspec

from engine.engine import Engine
from engine.server.front.clients import HeldClients
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
    FrontFailed,
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
    WireError,
)
from engine.spec.request import Request, RequestOutput
from engine.wire.frames import FrameChannel

# How often the front is asked whether it still serves.
PING_S = 1.0
# How old the front's copy of the engine's state may get.
STATE_POLL_S = 0.05
# A change of policy may take as long as ranks take to start, so readings use other threads.
NUM_CALL_THREADS = 4
END_TIMEOUT_S = 5.0


class FrontGateway:
    """Carries one front's messages on threads of its own until the front is gone.

    All a step loop does per token is to append to a queue and to look at an event. When the
    front goes, its requests are aborted and their clients told. Give it one end of a socket
    pair, and call :meth:`open` once the engine runs. ``num_pongs`` grows about once a second
    while the event loop of a ready front turns.
    """

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self.is_ready = False
        self.num_pongs = 0
        self.has_answered = threading.Event()
        self.has_ended = threading.Event()
        self.failure: WireError | None = None
        self._engine = engine
        self._socket = sock
        self._channel = FrameChannel(sock)
        self._decoder = msgspec.msgpack.Decoder(FromFront)
        self._encoder = msgspec.msgpack.Encoder()
        self._outbox: deque[tuple[int, RequestOutput] | ToFront] = deque()
        self._has_mail = threading.Event()
        # What to abort when the front goes. The reader adds to it, the writer removes from it.
        self._request_ids: dict[int, str] = {}
        # Used by the reader alone: whom to tell when the front goes, and the last prompt.
        self._clients = HeldClients()
        self._prompt_ids: tuple[int, ...] = ()
        self._state: EngineState | None = None
        self._state_lock = threading.Lock()
        self._calls = ThreadPoolExecutor(NUM_CALL_THREADS, thread_name_prefix="front-call")
        self._threads = [
            threading.Thread(target=self._read, name="front-reader", daemon=True),
            threading.Thread(target=self._write, name="front-writer", daemon=True),
        ]

    def open(self, setup: FrontSetup, listener: socket.socket) -> None:
        """Tell the front what it serves and where, and begin to work for it.

        ``has_answered`` is set when it serves (``is_ready``), cannot (``failure`` says why) or
        has gone, which sets ``has_ended`` too.
        """
        with contextlib.suppress(OSError):  # it has ended already, which the reader notices
            self._channel.send(self._encoder.encode(setup), [listener.fileno()])
        self._post_state()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Abort what the front still waits for and end the threads. Safe to call twice."""
        with contextlib.suppress(OSError):  # hung up already
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(END_TIMEOUT_S)
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._channel.close()

    # -- the reader thread ---------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                self._take(self._decoder.decode(frame))
        except OSError:  # closed here
            pass
        finally:
            self.has_ended.set()
            self.has_answered.set()
            self._has_mail.set()
            for request_id in list(self._request_ids.values()):
                self._engine.abort(request_id)
            self._clients.tell_lost()

    def _take(self, message: FromFront) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort():
                self._engine.abort(message.request_id, reason=message.reason)
            case Apply() | Preview() | AskStats() | AskKnobs() | AskModeTables():
                self._calls.submit(self._answer, message)
            case FrontReady():
                self.is_ready = True
                self.has_answered.set()
            case Lend():
                self._clients.hold(message.client, self._channel.take_fds())
            case BeginStream():
                self._clients.begin(message.client, is_chunked=message.is_chunked)
            case TakeBack():
                self._clients.release(message.client)
            case Pong():
                self.num_pongs += 1
            case FrontFailed():
                self.failure = message.error
                self.has_answered.set()
            case _:
                assert_never(message)

    def _submit(self, message: Submit) -> None:
        number, request = message.number, self._with_known_prompt(message.request)
        self._request_ids[number] = request.request_id
        try:
            self._engine.submit(request, partial(self._take_output, number))
        except Exception as error:
            del self._request_ids[number]
            self._post(CallFailed(number=number, error=WireError.of(error)))
        else:
            self._post(Accepted(number=number))

    def _with_known_prompt(self, request: Request) -> Request:
        """``request`` with the ids of the one before where they are equal. Each choice of a call
        comes with its prompt, and a thousand long ones are gigabytes."""
        if request.prompt_ids == self._prompt_ids:
            return replace(request, prompt_ids=self._prompt_ids)
        self._prompt_ids = request.prompt_ids
        return request

    # -- the threads for calls -----------------------------------------------------------------

    def _answer(self, ask: Ask) -> None:
        try:
            answer = self._ask(ask)
        except Exception as error:
            answer = CallFailed(number=ask.number, error=WireError.of(error))
        self._post_state()  # before the answer: who changed the policy sees it changed
        self._post(answer)

    def _ask(self, ask: Ask) -> Answer:
        match ask:
            case Apply():
                applied = self._engine.apply(ask.policy, expected=ask.expected, limits=ask.limits)
                return Applied(number=ask.number, applied=applied)
            case Preview():
                found = self._engine.preview(ask.policy, limits=ask.limits)
                return Previewed(number=ask.number, found=found)
            case AskStats():
                return Stats(number=ask.number, stats=self._engine.stats())
            case AskKnobs():
                return Knobs(number=ask.number, knobs=self._engine.capabilities())
            case AskModeTables():
                return ModeTables(number=ask.number, tables=self._engine.mode_tables())
            case _:
                assert_never(ask)

    # -- to the front --------------------------------------------------------------------------

    def _take_output(self, number: int, output: RequestOutput) -> None:
        """Called on a step loop's thread, once per token."""
        self._outbox.append((number, output))
        if not self._has_mail.is_set():
            self._has_mail.set()

    def _post(self, message: ToFront) -> None:
        self._outbox.append(message)
        self._has_mail.set()

    def _post_state(self) -> None:
        with self._state_lock:
            state = _state_of(self._engine)
            if state != self._state:
                self._state = state
                self._post(state)

    def _write(self) -> None:
        looked_s = pinged_s = time.monotonic()
        while not self.has_ended.is_set():
            self._has_mail.wait(STATE_POLL_S)
            # Cleared before the queue is read: what is appended afterwards must wake this thread
            # again.
            self._has_mail.clear()
            if time.monotonic() - looked_s >= STATE_POLL_S:
                self._post_state()
                looked_s = time.monotonic()
            if self.is_ready and time.monotonic() - pinged_s >= PING_S:
                self._post(Ping())
                pinged_s = time.monotonic()
            try:
                self._send_mail()
            except OSError:  # it is gone, which the reader notices too
                return

    def _send_mail(self) -> None:
        rows: list[OutputRow] = []
        while self._outbox:
            item = self._outbox.popleft()
            if isinstance(item, tuple):
                rows.append(self._row(*item))
                continue
            self._send_rows(rows)
            rows = []
            self._channel.send(self._encoder.encode(item))
        self._send_rows(rows)

    def _send_rows(self, rows: list[OutputRow]) -> None:
        if rows:
            self._channel.send(self._encoder.encode(Outputs(rows=rows)))

    def _row(self, number: int, output: RequestOutput) -> OutputRow:
        if output.finish_reason is not None:
            self._request_ids.pop(number, None)
        return OutputRow(
            number=number,
            token_ids=output.token_ids,
            token_s=output.token_s,
            finish_reason=output.finish_reason,
            scheduled_s=output.scheduled_s,
            error=output.error,
            logprobs=output.logprobs,
            prompt_logprobs=output.prompt_logprobs,
        )


def _state_of(engine: Engine) -> EngineState:
    return EngineState(
        policy=engine.policy,
        held_plan=engine.held_plan,
        max_model_len=engine.max_model_len,
        is_healthy=engine.is_healthy,
    )
