"""The worker as a child of the service: started, watched, restarted, ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import structlog

from api.web.settings import ServiceSettings
from engine.wire.child import inherited_environment

# How long to pause before a dead worker is replaced; jobs wait meanwhile. If workers keep dying,
# each pause is twice the one before.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
# After a worker that lived this long, the pause is short again.
SOUND_AFTER_S = 30.0
STOP_TIMEOUT_S = 5.0
# One thread per rank: if more threads than cores spin for each other, everything stalls.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
COMMAND = (sys.executable, "-m", "api.jobs.worker")


class WorkerSupervisor:
    """Keeps one worker process alive. A worker that dies is noticed at once by its exit code."""

    def __init__(self, settings: ServiceSettings, command: tuple[str, ...] = COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="worker", daemon=True)
        self._log = structlog.get_logger("api.worker")

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        with self._lock:
            child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Start the worker and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """End the worker; a running trial is lost and runs again after the next start."""
        with self._lock:
            self._stop.set()
            child = self._child
        if child is not None:
            _end(child)
        self._thread.join()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            started_s = time.monotonic()
            ended = self._run()
            if time.monotonic() - started_s > SOUND_AFTER_S:
                pause_s = FIRST_PAUSE_S
            if self._stop.is_set():
                return
            self._log.error("worker ended; starting another", **ended, pause_s=pause_s)
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _run(self) -> dict[str, object]:
        """Run one worker to its end; how it ended, for the log."""
        try:
            child = self._spawn()
        except OSError as error:  # no memory or no process left, which may be over soon
            return {"error": str(error)}
        if child is None:
            return {}
        code = child.wait()
        _end(child)  # ranks of a live trial may have outlived it
        return {"code": code}

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        """A new worker; None when it was asked to stop meanwhile."""
        # A session of its own, so that the ranks it starts can be ended with it.
        with self._lock:
            if self._stop.is_set():
                return None
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                env={**ONE_THREAD, **inherited_environment(), **self._settings.environment()},
                start_new_session=True,
            )
            return self._child


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close its input, then end its session: the worker first by request, then by force."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
