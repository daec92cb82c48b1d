"""Rank processes of one replica: started, spoken to, watched and ended; no torch.

Knows frames of bytes, not what they mean, so that a pool of rank processes can be set up again
and again (another plan, another model) without paying for a start each time.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import RankError
from engine.executors.frames import FrameChannel

END_TIMEOUT_S = 2.0
WORDS_BYTES = 4000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, kw_only=True)
class RankFrame:
    """One message from one rank."""

    rank: int
    payload: bytes


class RankProcesses:
    """``num_ranks`` processes running ``python -m module``; this object's owner ends them.

    They also end by themselves when this process does, however it ends: each watches its
    parent's process and socket. Owned and called by one thread.
    """

    def __init__(
        self, num_ranks: int, *, module: str = "engine.worker", send_timeout_s: float = 60.0
    ) -> None:
        self.num_ranks = num_ranks
        self._selector = selectors.DefaultSelector()
        self._frames: deque[RankFrame] = deque()
        self._unreported: deque[int] = deque()  # ranks that are gone, not yet raised
        self._ranks: list[_Rank] = []
        try:
            for rank in range(num_ranks):
                self._ranks.append(_Rank(rank, module, send_timeout_s))
                self._selector.register(self._ranks[-1].channel, selectors.EVENT_READ, rank)
        except OSError as error:
            self.close()
            raise RankError(f"rank {len(self._ranks)} did not start: {error}") from error

    @property
    def pids(self) -> list[int]:
        return [rank.process.pid for rank in self._ranks]

    @property
    def is_alive(self) -> bool:
        """Whether no rank is known to be gone."""
        return bool(self._ranks) and all(rank.process.poll() is None for rank in self._ranks)

    def send(self, rank: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Write one frame to a rank.

        Raises:
            RankError: it is gone, or does not read.
        """
        if not self._ranks:
            raise RankError("the ranks have been closed")
        try:
            self._ranks[rank].channel.send(payload, fds)
        except OSError as error:
            raise RankError(f"{self._ranks[rank].last_words()} ({error})", rank=rank) from error

    def send_all(self, payload: bytes) -> None:
        """Write one frame to every rank. Raises RankError like :meth:`send`."""
        if not self._ranks:
            raise RankError("the ranks have been closed")
        for rank in range(self.num_ranks):
            self.send(rank, payload)

    def receive(self, timeout_s: float) -> RankFrame | None:
        """The next frame of any rank in order of arrival, or None after ``timeout_s``.

        Raises:
            RankError: a rank is gone: its number, exit code and last words.
        """
        deadline = time.monotonic() + timeout_s
        while not self._frames:
            left_s = max(0.0, deadline - time.monotonic())
            self._read(left_s)
            if left_s == 0.0:
                break
        return self._frames.popleft() if self._frames else None

    def dead_ranks(self) -> list[int]:
        """Ranks whose process has ended."""
        return [rank.number for rank in self._ranks if rank.process.poll() is not None]

    def last_words(self, rank: int) -> str:
        """How a rank ended and what it wrote to its error stream."""
        return self._ranks[rank].last_words()

    def close(self) -> None:
        """End every rank: terminate, then kill by pid. Safe to call twice."""
        for rank in self._ranks:
            rank.channel.close()
            if rank.process.poll() is None:
                rank.process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_S
        for rank in self._ranks:
            rank.end(deadline)
        self._ranks = []
        self._selector.close()

    def _read(self, timeout_s: float) -> None:
        if not self._ranks:
            raise RankError("the ranks have been closed")
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            rank = self._ranks[key.data]
            is_open = rank.channel.read()
            while (payload := rank.channel.next_frame()) is not None:
                self._frames.append(RankFrame(rank=rank.number, payload=payload))
            if not is_open:
                self._selector.unregister(rank.channel)
                self._unreported.append(rank.number)
        if not self._frames and self._unreported:
            gone = self._unreported.popleft()
            raise RankError(self._ranks[gone].last_words(), rank=gone)


class _Rank:
    """One process, its socket, and the anonymous file its error stream goes to."""

    def __init__(self, number: int, module: str, send_timeout_s: float) -> None:
        self.number = number
        ours, theirs = socket.socketpair()
        self._words_fd = os.memfd_create(f"gearshift-rank-{number}", os.MFD_CLOEXEC)
        command = [sys.executable, "-P", "-m", module]
        command += ["--socket-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._words_fd,
                stderr=self._words_fd,
                env=_environment(),
            )
        except OSError:
            ours.close()
            os.close(self._words_fd)
            raise
        finally:
            theirs.close()
        ours.settimeout(send_timeout_s)
        self.channel = FrameChannel(ours)

    def last_words(self) -> str:
        """For an error message: number, pid, how it ended, and the end of its error stream."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            state = "no longer answers"
        else:
            state = (
                f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
            )
        size = os.fstat(self._words_fd).st_size
        text = os.pread(self._words_fd, WORDS_BYTES, max(0, size - WORDS_BYTES))
        words = text.decode(errors="replace").strip()
        message = f"rank {self.number} (pid {self.process.pid}) {state}"
        return f"{message}; its last words:\n{words}" if words else message

    def end(self, deadline: float) -> None:
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._words_fd)


def _environment() -> dict[str, str]:
    """One thread per rank, and modules from where this process has them, not from the cwd."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": path}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
