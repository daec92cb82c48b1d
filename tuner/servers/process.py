"""One server as a process: started on a free port, waited for, ended with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import httpx

from engine.spec.errors import EngineError
from engine.wire.child import inherited_environment
from tuner.load.urls import is_secure

KEEPER = Path(__file__).with_name("keeper.py")
# Between SIGTERM and SIGKILL.
GRACE_S = 15.0
POLL_S = 0.1
ASK_TIMEOUT_S = 5.0
# How much of the log's end goes into an error.
TAIL_LINES = 12
TAIL_CHARACTERS = 1500


class ServerError(EngineError):
    """A server that did not start or did not last, with the end of its log."""


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class ServerProcess:
    """``words`` as a process group of its own, under a keeper that ends it with this process.

    Use as a context manager. ``name`` is what errors call it. Standard output and error go to a
    file of its own, which is removed at the end. The process's environment is ours without our
    keys. :meth:`check` reports a program that is not there like one that died.
    """

    def __init__(
        self, words: Sequence[str], *, name: str = "the server", grace_s: float = GRACE_S
    ) -> None:
        self.words = tuple(words)
        self._name = name
        self._grace_s = grace_s
        self._started_s = time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it is closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(KEEPER), str(os.getpid()), str(grace_s), *self.words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=inherited_environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The keeper's, which leads the process group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_healthy(
        self, url: str, *, timeout_s: float, should_stop: Callable[[], bool] = lambda: False
    ) -> float:
        """Wait until ``GET url`` answers 200; returns the seconds since the start.

        Raises:
            ServerError: it ended before, or did not answer in time or before it was told to stop.
        """
        with httpx.Client(timeout=ASK_TIMEOUT_S, verify=is_secure(url)) as client:
            while time.monotonic() - self._started_s < timeout_s:
                self.check()
                if should_stop():
                    raise self._error("was stopped while it started")
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(url).status_code == httpx.codes.OK:
                        return time.monotonic() - self._started_s
                time.sleep(POLL_S)
        raise self._error(f"did not answer {url} within {timeout_s:g} s")

    def check(self) -> None:
        """Raises ServerError where the server has ended, with its exit code."""
        if self.has_ended:
            seconds = time.monotonic() - self._started_s
            raise self._error(
                f"ended with exit code {self._process.returncode} after {seconds:.0f} s"
            )

    def check_answers(self, url: str) -> None:
        """Raises ServerError unless ``GET url`` is answered with 200: requests that fail at once
        may show a server's end before its exit code does."""
        try:
            answer = httpx.get(url, timeout=ASK_TIMEOUT_S, verify=is_secure(url))
        except httpx.HTTPError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s)
            self.check()
            raise self._error(f"does not answer any more ({error})") from error
        if answer.status_code != httpx.codes.OK:
            raise self._error(f"answers {url} with {answer.status_code}")

    def tail(self) -> str:
        """The last lines of its log."""
        size = os.fstat(self._log.fileno()).st_size
        raw = os.pread(self._log.fileno(), TAIL_CHARACTERS * 4, max(0, size - TAIL_CHARACTERS * 4))
        lines = [line for line in raw.decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]

    def close(self) -> None:
        """End the server and everything that it started. Safe to call twice."""
        if self._log.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(2 * self._grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # whatever interrupts the wait, nothing is left
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._log.close()

    def _error(self, what: str) -> ServerError:
        tail = self.tail()
        said = f"; its last lines:\n{tail}" if tail else "; it said nothing"
        return ServerError(f"{self._name} {what}{said}")
