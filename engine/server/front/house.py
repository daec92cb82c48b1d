"""The engine's process keeps one front process: starts it, replaces it, drains it at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from engine.engine import Engine
from engine.server.front.gateway import FrontGateway
from engine.server.front.messages import FrontSetup
from engine.spec.errors import RankError
from engine.wire.child import inherited_environment

FRONT_MODULE = "engine.server.front.process"
# How soon a signal, or the end of a front, is noticed.
POLL_S = 0.05
START_TIMEOUT_S = 60.0
# A front that lived this long was sound; one that keeps dying sooner is started only so often.
SOUND_AFTER_S = 10.0
MAX_RESTARTS = 3
HUNG = "did not answer any more and was killed"
# A front whose event loop has not turned for this long is replaced.
HANG_TIMEOUT_S = 10.0
# A gap longer than this between two looks does not count as silence: this process may itself have
# been stopped meanwhile.
MAX_LOOK_GAP_S = 1.0
# Granted beyond the drain time, so that the front can answer those it cut off.
END_GRACE_S = 5.0


class FrontHouse:
    """One engine's front process, in the foreground of the engine's own.

    The listening socket stays open here while a front is replaced, so that clients wait instead
    of being refused. Owned by the main thread, which alone can receive signals.
    """

    def __init__(self, engine: Engine, setup: FrontSetup, listener: socket.socket) -> None:
        self._engine = engine
        self._setup = setup
        self._listener = listener
        self._num_signals = 0
        self._is_interrupted = False
        self._front = _Front(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._front.close()

    def run(self, on_ready: Callable[[], None], on_restart: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT, then let requests in progress finish.

        A second signal cuts them off. ``on_restart`` is told why a front had to be replaced.

        Raises:
            EngineError: the front cannot start, or has ended too often.
            KeyboardInterrupt: the signal was SIGINT; all has ended as it should.
        """
        with self._signals():
            if self._open():
                on_ready()
                self._watch(on_restart)
                self._drain()
            elif not self._num_signals:
                raise RankError(f"the HTTP front end {self._front.last_words()} as it started")
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _open(self) -> bool:
        """Wait until the front accepts connections; False if it ends or a signal comes first."""
        gateway = self._front.gateway
        gateway.open(self._setup, self._listener)
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not gateway.has_answered.wait(POLL_S):
            if self._num_signals:
                return False
            if time.monotonic() > give_up_s:
                raise RankError(f"the HTTP front end did not start within {START_TIMEOUT_S:.0f} s")
        if gateway.failure is not None:
            raise gateway.failure.to_error()
        return gateway.is_ready

    def _watch(self, on_restart: Callable[[str], None]) -> None:
        """Replace the front whenever it ends, until a signal comes."""
        num_restarts, started_s = 0, time.monotonic()
        while not self._num_signals:
            has_ended = self._front.gateway.has_ended.wait(POLL_S)
            if not has_ended and not self._front.seems_hung():
                continue
            if self._num_signals:
                return
            is_sound = time.monotonic() - started_s > SOUND_AFTER_S
            num_restarts = 1 if is_sound else num_restarts + 1
            why = self._front.last_words() if has_ended else HUNG
            if num_restarts > MAX_RESTARTS:
                raise RankError(f"the HTTP front end ended {num_restarts} times; lastly it {why}")
            on_restart(why)
            self._front.close()
            self._front, started_s = _Front(self._engine), time.monotonic()
            self._open()

    def _drain(self) -> None:
        """Let the front finish what is in progress, and end it."""
        self._listener.close()  # else clients that come now would wait in its queue
        process = self._front.process
        process.terminate()
        give_up_s = time.monotonic() + self._setup.drain_s + END_GRACE_S
        while process.poll() is None and self._num_signals < 2 and time.monotonic() < give_up_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def count(number: int, _frame: FrameType | None) -> None:
            self._num_signals += 1
            self._is_interrupted |= number == signal.SIGINT

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Front:
    """One front process and the engine's end of its socket."""

    def __init__(self, engine: Engine) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", FRONT_MODULE]
        command += ["--socket-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # stdout is for the answer of this process
                env={**inherited_environment(), "PYTHONPATH": _module_path()},
                process_group=0,  # Ctrl-C is for this process, which drains the front
            )
        self.gateway = FrontGateway(engine, ours)
        self._looked_s = time.monotonic()
        self._num_pongs = 0
        self._silent_s = 0.0

    def seems_hung(self) -> bool:
        """Whether it has been silent for too long. Call it often: long gaps between calls do not
        count."""
        now_s = time.monotonic()
        gap_s, self._looked_s = min(now_s - self._looked_s, MAX_LOOK_GAP_S), now_s
        is_heard = self.gateway.num_pongs != self._num_pongs
        self._silent_s = 0.0 if is_heard else self._silent_s + gap_s
        self._num_pongs = self.gateway.num_pongs
        return self._silent_s > HANG_TIMEOUT_S

    def last_words(self) -> str:
        """How it ended; its last words are on the error stream already."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=1.0)
            return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return "hung up"

    def close(self) -> None:
        """End the gateway, and the process if it still runs. Safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.gateway.close()


def _module_path() -> str:
    """Modules come from where this process has them, not from the working directory."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)
