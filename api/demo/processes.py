"""Child processes of one command: the control plane and the engines, ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

END_S = 20.0


class DemoError(Exception):
    """A part did not start, or ended; the message holds its own last words."""


class Children:
    """Starts ``gearshift`` commands and ends exactly those again, newest first.

    Use ``with``, on the main thread: SIGTERM ends this process meanwhile as Ctrl-C does, so that it
    leaves none behind.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Children:
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        signal.signal(signal.SIGTERM, self._before)

    def end_all(self) -> None:
        """End every child that runs, newest first."""
        while self._running:
            self.end(self._running[-1])

    def start(self, name: str, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Run ``gearshift ARGUMENTS --json``; returns it with the object it prints when ready.

        Raises:
            DemoError: it ended before it was ready.
        """
        log_path = self._folder / f"{name}.log"
        with log_path.open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "api.cli.main", *arguments, "--json"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._running.append(child)
        assert child.stdout is not None, "stdout is a pipe"
        line = child.stdout.readline()
        if not line:
            tail = "\n".join(log_path.read_text().splitlines()[-5:])
            raise DemoError(f"{name} ended with exit code {child.wait()}:\n{tail}")
        ready: dict[str, Any] = json.loads(line)
        return child, ready

    def know(self, variable: str, value: str) -> None:
        """Set an environment variable of children to come."""
        self._environment[variable] = value

    def watch(self, look_s: float) -> None:
        """Wait until a child ends by itself, or Ctrl-C.

        Raises:
            DemoError: a child ended.
            KeyboardInterrupt: Ctrl-C.
        """
        while True:
            for child in self._running:
                if (code := child.poll()) is not None:
                    # Of a list, as every child here is started; Popen allows one text too.
                    words = " ".join(map(str, child.args[3:]))  # type: ignore[index]
                    raise DemoError(f"gearshift {words} ended with exit code {code}")
            time.sleep(look_s)

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a ``gearshift`` command to its end and return the object it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "api.cli.main", *arguments, "--json"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoError(f"gearshift {' '.join(arguments)}: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def end(self, child: subprocess.Popen[str]) -> None:
        """Ask a child to stop, and end it if it does not."""
        self._running.remove(child)
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
