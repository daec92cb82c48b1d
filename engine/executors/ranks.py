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

from engine.spec.errors import RankError
from engine.wire.child import inherited_environment
from engine.wire.frames import FrameChannel

END_TIMEOUT_S = 2.0
# A rank's receiving thread takes frames in at once; one that does not is stopped or gone.
SEND_TIMEOUT_S = 5.0
WORDS_BYTES = 4000
WORDS_TIMEOUT_S = 1.0
# The environment that a rank starts with, before it is told its threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# A rank's threads spin for about a millisecond before their next product: long enough for the gaps
# within a step, short enough for a front end that wants the core. If the user sets this or
# OMP_WAIT_POLICY, that holds.
SHORT_SPIN = {"GOMP_SPINCOUNT": "20000"}


@dataclass(frozen=True, kw_only=True)
class RankFrame:
    """One message from one rank."""

    rank: int
    payload: bytes


class RankProcess:
    """One process, its socket, and the anonymous file its output goes to.

    ``number`` is its rank in whatever it is used for now. Answers to an earlier use (see
    :meth:`begin_use`) are dropped.
    """

    def __init__(self, *, module: str = "engine.rank.worker") -> None:
        self.number = 0
        self._tag = 0
        ours, theirs = socket.socketpair()
        self._words_fd = os.memfd_create("gearshift-rank-words", os.MFD_CLOEXEC)
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
        except OSError as error:
            ours.close()
            os.close(self._words_fd)
            raise RankError(f"a rank did not start: {error}") from error
        finally:
            theirs.close()
        ours.settimeout(SEND_TIMEOUT_S)
        self.channel = FrameChannel(ours)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def begin_use(self, number: int) -> None:
        """Be rank ``number`` from now on; frames of an earlier use are dropped."""
        self.number = number
        self._tag += 1

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Write one frame.

        Raises:
            RankError: it is gone, or does not read.
        """
        try:
            self.channel.send(payload, fds, tag=self._tag)
        except OSError as error:
            raise RankError(f"{self.last_words()} ({error})", rank=self.number) from error

    def take_frames(self) -> list[bytes]:
        """The frames read so far that belong to the present use."""
        frames = []
        while (payload := self.channel.next_frame()) is not None:
            if self.channel.tag == self._tag:
                frames.append(payload)
        return frames

    def last_words(self) -> str:
        """For an error message: number, pid, how it ended, and the end of its output."""
        try:
            code = self.process.wait(timeout=WORDS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            state = "no longer answers"
        else:
            state = (
                f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
            )
        size = os.fstat(self._words_fd).st_size
        text = os.pread(self._words_fd, WORDS_BYTES, max(0, size - WORDS_BYTES))
        words = text.decode(errors="replace").strip()
        message = f"rank {self.number} (pid {self.pid}) {state}"
        return f"{message}; its last words:\n{words}" if words else message

    def end(self, deadline_s: float) -> None:
        """Close the socket, wait until ``deadline_s`` for the process to end, else kill it."""
        self.channel.close()
        try:
            self.process.wait(timeout=max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._words_fd >= 0:
            os.close(self._words_fd)
            self._words_fd = -1


class RankProcesses:
    """The processes of the ranks 0, 1, ... of one replica; this object's owner ends them.

    Starts ``num_ranks`` of them running ``python -m module``, or takes over ``processes``. They
    also end by themselves when this process does, however it ends: each watches its parent's
    process and socket. Owned and called by one thread.

    Raises:
        RankError: a process could not be started.
    """

    def __init__(
        self,
        num_ranks: int,
        *,
        module: str = "engine.rank.worker",
        processes: Sequence[RankProcess] = (),
    ) -> None:
        self.num_ranks = num_ranks
        self._selector = selectors.DefaultSelector()
        self._frames: deque[RankFrame] = deque()
        self._unreported: deque[int] = deque()  # ranks that are gone, not yet raised
        self._ranks = list(processes)
        try:
            while len(self._ranks) < num_ranks:
                self._ranks.append(RankProcess(module=module))
        except RankError:
            end_processes(self._ranks)
            raise
        assert len(self._ranks) == num_ranks, "one process for each rank"
        for rank in self._ranks:
            self._selector.register(rank.channel, selectors.EVENT_READ, rank)
        self.begin_use()

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [rank.pid for rank in self._ranks]

    @property
    def is_alive(self) -> bool:
        """Whether no rank is known to be gone."""
        return bool(self._ranks) and all(rank.is_alive for rank in self._ranks)

    def begin_use(self) -> None:
        """Drop all frames that ranks have sent so far, those still on their way included."""
        self._frames.clear()
        for number, rank in enumerate(self._ranks):
            rank.begin_use(number)

    def send(self, rank: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Write one frame to a rank.

        Raises:
            RankError: it is gone, or does not read.
        """
        self._running()[rank].send(payload, fds)

    def send_all(self, payload: bytes) -> None:
        """Write one frame to every rank. Raises RankError like :meth:`send`."""
        for rank in self._running():
            rank.send(payload)

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
        return [rank.number for rank in self._ranks if not rank.is_alive]

    def last_words(self, rank: int) -> str:
        """How a rank ended and what it wrote to its error stream."""
        return self._ranks[rank].last_words()

    def release(self) -> list[RankProcess]:
        """Hand the processes over to the caller; this object is of no use afterwards."""
        ranks, self._ranks = self._ranks, []
        self._frames.clear()
        self._selector.close()
        return ranks

    def close(self) -> None:
        """End every rank (see :func:`end_processes`). Safe to call twice."""
        end_processes(self.release())

    def _running(self) -> list[RankProcess]:
        if not self._ranks:
            raise RankError("the ranks have been closed")
        return self._ranks

    def _read(self, timeout_s: float) -> None:
        self._running()
        for key, _ in self._selector.select(timeout_s):
            rank: RankProcess = key.data
            is_open = rank.channel.read()
            self._frames += [
                RankFrame(rank=rank.number, payload=payload) for payload in rank.take_frames()
            ]
            if not is_open:
                self._selector.unregister(rank.channel)
                self._unreported.append(rank.number)
        if not self._frames and self._unreported:
            gone = self._unreported.popleft()
            raise RankError(self._ranks[gone].last_words(), rank=gone)


def end_processes(processes: Sequence[RankProcess]) -> None:
    """End processes, by pid, and wait for them: they have nothing to put away, and SIGTERM is not
    for them (see ``engine.rank.worker``)."""
    for rank in processes:
        rank.channel.close()
        if rank.is_alive:
            rank.process.kill()
    deadline = time.monotonic() + END_TIMEOUT_S
    for rank in processes:
        rank.end(deadline)


def _environment() -> dict[str, str]:
    """The environment: one thread to start with, and modules from where this process finds them,
    not from the current folder."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    found = inherited_environment()
    waiting = {} if "OMP_WAIT_POLICY" in found else SHORT_SPIN
    return {**waiting, **found, **ONE_THREAD, "PYTHONPATH": path}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
