"""Programs of the world: started, killed, started again on the same port."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

# Of a program on a machine that is busy with other things, too.
START_S = 180.0
END_S = 20.0


class Child:
    """One program that tells by a JSON line when it is ready. It may be started many times."""

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self.starts = 0
        self._command = list(command)
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def add_arguments(self, *arguments: str) -> None:
        """Give it more arguments at its next start."""
        self._command += arguments

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has been started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start it; :meth:`wait_ready` tells when it is ready."""
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
            )

    def wait_ready(self) -> dict[str, Any]:
        """What it says when it is ready.

        Raises:
            RuntimeError: it ended first, or took too long.
        """
        assert self._process is not None, "it has been started"
        assert self._process.stdout is not None, "stdout is a pipe"
        stdout, end_s, text = self._process.stdout, time.monotonic() + START_S, b""
        while not text.endswith(b"\n"):
            readable, _, _ = select.select([stdout], [], [], max(0.0, end_s - time.monotonic()))
            part = os.read(stdout.fileno(), 4096) if readable else b""
            if not part:
                raise RuntimeError(f"{self.name} is not ready (exit code {self._process.poll()})")
            text += part
        ready: dict[str, Any] = json.loads(text)
        return ready

    def start(self) -> dict[str, Any]:
        """Start it and wait until it is ready."""
        self.spawn()
        return self.wait_ready()

    def kill(self) -> None:
        """End it at once, as the kernel does when memory is short."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """Ask it to end; how it did. A child that does not is killed (exit code -9)."""
        return self._end(signal.SIGTERM)

    def descendants(self, word: str = "") -> list[psutil.Process]:
        """Processes below it that live and have ``word`` in their command."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.status() != psutil.STATUS_ZOMBIE and word in " ".join(
                        process.cmdline()
                    ):
                        found.append(process)
        return found

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


def living(processes: Sequence[psutil.Process]) -> list[int]:
    """Those that still run, by id; one that is dead and not yet buried does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
