"""Messages are taken in and answers handed out in order, whatever waits for what."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from engine.rank.threads import Inbox, Outbox, RankPing
from engine.spec.steps import StepPlan, StepResult, StepShape
from engine.wire.frames import FrameChannel
from engine.wire.messages import PING, Shutdown


@pytest.fixture
def host_and_inbox() -> Iterator[tuple[FrameChannel, Inbox]]:
    ours, theirs = socket.socketpair()
    host, rank = FrameChannel(ours), FrameChannel(theirs)
    yield host, Inbox(rank)
    host.close()
    rank.close()


class Preparing:
    """Stands for the runner: remembers what it prepared, and cannot prepare step 1."""

    def __init__(self) -> None:
        self.thread_names: list[str] = []

    def prepare(self, step: StepPlan) -> int:
        self.thread_names.append(threading.current_thread().name)
        if step.step_id == 1:
            raise ValueError("step 1")
        return step.step_id


def send(host: FrameChannel, step_id: int) -> None:
    host.send(msgspec.msgpack.encode(StepPlan(step_id=step_id, shape=StepShape())), tag=5)


def test_steps_are_prepared_as_they_come_and_their_errors_come_with_them(
    host_and_inbox: tuple[FrameChannel, Inbox],
) -> None:
    host, inbox = host_and_inbox
    runner = Preparing()
    inbox.prepares_for = runner
    for step_id in range(3):
        send(host, step_id)
    host.send(PING, tag=6)
    host.send(msgspec.msgpack.encode(Shutdown()), tag=6)
    host.close()
    arrivals = [inbox.next() for _ in range(5)]
    assert inbox.next() is None
    steps = [a for a in arrivals if a is not None and isinstance(a.message, StepPlan)]
    assert [str(a.prepared) for a in steps] == ["0", "None", "2"]
    assert [str(a.error) for a in steps] == ["None", "step 1", "None"]
    assert all(a.tag == 5 and a.prepared_s >= a.arrived_s for a in steps)
    assert arrivals[3] is not None
    assert isinstance(arrivals[3].message, RankPing)
    assert runner.thread_names == ["inbox"] * 3


def test_without_a_runner_steps_are_left_to_the_computing_thread(
    host_and_inbox: tuple[FrameChannel, Inbox],
) -> None:
    host, inbox = host_and_inbox
    send(host, 0)
    arrival = inbox.next()
    assert arrival is not None
    assert arrival.prepared is None


def test_what_is_no_message_is_raised_where_it_is_read(
    host_and_inbox: tuple[FrameChannel, Inbox],
) -> None:
    host, inbox = host_and_inbox
    host.send(b"\xc1")
    with pytest.raises(msgspec.DecodeError):
        inbox.next()


class Answer:
    """Stands for a pending answer that is there once ``done`` is set."""

    def __init__(self, step_id: int, *, is_deferred: bool, finished_s: float) -> None:
        self.step_id = step_id
        self.is_deferred = is_deferred
        self.finished_s = finished_s
        self.idle_s = 0.0
        self.done = threading.Event()

    def wait(self) -> StepResult:
        self.done.wait()
        return StepResult(step_id=self.step_id, idle_s=self.idle_s)


@pytest.mark.parametrize("is_deferred", [False, True])
def test_answers_leave_in_order_with_the_pause_before_their_step(is_deferred: bool) -> None:
    sent: list[tuple[StepResult, int]] = []

    def fail(error: Exception, tag: int) -> None:
        raise AssertionError(f"{error} {tag}")

    outbox = Outbox(lambda result, tag: sent.append((result, tag)), fail)
    answers = [
        Answer(step_id, is_deferred=is_deferred, finished_s=10.0 + step_id) for step_id in range(3)
    ]
    arrivals_s = (5.0, 10.5, 11.25)  # step 1 came 0.5 s late, step 2 0.25 s late
    if not is_deferred:
        for answer in answers:
            answer.done.set()
    for answer, arrived_s in zip(answers, arrivals_s, strict=True):
        outbox.put(answer, arrived_s, 7)
    assert is_deferred is not bool(sent)
    for answer in reversed(answers):
        answer.done.set()
    outbox.drain()
    assert [(r.step_id, r.idle_s, tag) for r, tag in sent] == [
        (0, 0.0, 7),
        (1, 0.5, 7),
        (2, 0.25, 7),
    ]
    outbox.put(answers[0], 99.0, 8)
    outbox.drain()
    assert sent[-1][0].idle_s == 0.0, "no step went before it in its use"
