"""The threads around the one that computes: one takes messages in, one hands answers out; no torch.

The computing thread never waits for the socket, and on CUDA never for the device.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from engine.spec.steps import StepPlan, StepResult
from engine.wire.frames import FrameChannel
from engine.wire.messages import PING, RankSetup, Shutdown, ToRank

if TYPE_CHECKING:
    from engine.rank.answers import PendingAnswer
    from engine.rank.runner import ModelRunner, PreparedStep

FAILED_EXIT_CODE = 1


class RankPing:
    """Asks whether this rank is idle; answered when all that came before is done."""


@dataclass(eq=False)
class Received:
    """A message, its frame's ``tag``, and when it came, on ``time.perf_counter``.

    A step may come prepared, or with what went wrong in preparing it; ``prepared_s`` is when.
    """

    message: StepPlan | RankSetup | Shutdown | RankPing
    tag: int
    arrived_s: float
    fds: list[int] = field(default_factory=list)
    prepared: PreparedStep | None = None
    error: Exception | None = None
    prepared_s: float = 0.0


class Inbox:
    """Receives and decodes on a thread of its own, and prepares steps ahead where told to.

    The host bounds how many steps wait here: it sends one more than there are stages.
    """

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._decoder = msgspec.msgpack.Decoder(ToRank)
        self._arrivals: queue.SimpleQueue[Received | Exception | None] = queue.SimpleQueue()
        # Set between a setup's arrival and its answer, while no step can come.
        self.prepares_for: ModelRunner | None = None
        threading.Thread(target=self._run, name="inbox", daemon=True).start()

    def next(self) -> Received | None:
        """The next message, waiting for it; None once the other end is gone."""
        arrival = self._arrivals.get()
        if isinstance(arrival, Exception):
            raise arrival
        return arrival

    def _run(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                self._arrivals.put(self._arrival(frame))
        except Exception as error:
            self._arrivals.put(error)
        self._arrivals.put(None)

    def _arrival(self, frame: bytes) -> Received:
        arrived_s = time.perf_counter()
        message = RankPing() if frame == PING else self._decoder.decode(frame)
        arrival = Received(message=message, tag=self._channel.tag, arrived_s=arrived_s)
        if isinstance(message, RankSetup):
            arrival.fds = self._channel.take_fds()
        elif isinstance(message, StepPlan) and self.prepares_for is not None:
            _prepare(arrival, message, self.prepares_for)
        return arrival


def _prepare(arrival: Received, step: StepPlan, runner: ModelRunner) -> None:
    try:
        arrival.prepared = runner.prepare(step)
    except Exception as error:
        arrival.error = error
    arrival.prepared_s = time.perf_counter()


class Outbox:
    """Sends answers in the order of their steps.

    A second thread, started when first needed, waits for answers that the device still computes.
    ``send`` is called with a result and its tag; ``fail`` with what went wrong on that thread,
    after which the process ends: the device is at fault.
    """

    def __init__(
        self, send: Callable[[StepResult, int], None], fail: Callable[[Exception, int], None]
    ) -> None:
        self._send = send
        self._fail = fail
        self._deferred: queue.Queue[tuple[PendingAnswer, float, int]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._finished_s: float | None = None

    def put(self, answer: PendingAnswer, arrived_s: float, tag: int) -> None:
        """Send the answer to the step that arrived at ``arrived_s``, as soon as it is there."""
        if not answer.is_deferred:
            self._finish(answer, arrived_s, tag)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()
        self._deferred.put((answer, arrived_s, tag))

    def drain(self) -> None:
        """Wait until all answers are sent; the next step begins a new sequence."""
        self._deferred.join()
        self._finished_s = None

    def _finish(self, answer: PendingAnswer, arrived_s: float, tag: int) -> None:
        if self._finished_s is not None:
            answer.idle_s = max(0.0, arrived_s - self._finished_s)
        result = answer.wait()
        self._finished_s = answer.finished_s
        self._send(result, tag)

    def _run(self) -> None:
        while True:
            answer, arrived_s, tag = self._deferred.get()
            try:
                self._finish(answer, arrived_s, tag)
            except Exception as error:
                self._fail(error, tag)
                os._exit(FAILED_EXIT_CODE)
            self._deferred.task_done()
