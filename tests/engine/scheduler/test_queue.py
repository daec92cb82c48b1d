"""The waiting queue: every order, carried-over sequences first, nothing lost on the way."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.scheduler.queue import WaitingQueue
from engine.scheduler.table import Sequence
from engine.spec.request import Request
from engine.spec.settings import Order


def make_sequence(name: str, *, prompt_len: int = 1, priority: int = 0) -> Sequence:
    request = Request(request_id=name, prompt_ids=(1,) * prompt_len, priority=priority)
    return Sequence.of(request)


def names(queue: WaitingQueue) -> list[str]:
    return [sequence.request_id for sequence in queue]


def test_who_is_passed_over_by_a_step_blocks_the_queue_until_the_next_step_or_the_end_of_all() -> (
    None
):
    queue = WaitingQueue()
    queue.push(make_sequence("early"))
    assert not queue.is_blocked
    queue.pass_over()
    queue.push(make_sequence("late"))
    assert queue.is_blocked
    for name in ("early", "late"):
        queue.remove(name)
    assert not queue.is_blocked
    queue.pass_over()
    queue.push(make_sequence("later"))
    assert not queue.is_blocked


sizes = {"prompt_len": st.integers(1, 3), "priority": st.integers(-1, 1)}


class QueueAgainstAList(RuleBasedStateMachine):
    """A queue beside a list sorted at every look; sequences go in, run, come back and move on."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.fresh: list[Sequence] = []  # in order of arrival
        self.carried: list[Sequence] = []  # in the order in which they are served again
        self.running: list[Sequence] = []
        self.names = map(str, count())

    @property
    def expected(self) -> list[Sequence]:
        match self.queue.order:
            case Order.FCFS:
                return self.carried + self.fresh
            case Order.SHORTEST_PROMPT:
                return self.carried + sorted(self.fresh, key=lambda s: s.num_tokens)
            case Order.PRIORITY:
                everyone = self.carried + self.fresh
                return sorted(everyone, key=lambda s: s.request.priority)

    @rule(**sizes)
    def arrive(self, prompt_len: int, priority: int) -> None:
        sequence = make_sequence(next(self.names), prompt_len=prompt_len, priority=priority)
        self.queue.push(sequence)
        self.fresh.append(sequence)

    @rule()
    def admit(self) -> None:
        if self.expected:
            first = self.expected[0]
            assert self.queue.pop() is first
            self.forget(first)
            self.running.append(first)

    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        if self.running:
            victim = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            victim.num_tokens += 1
            self.queue.push_carried([victim])
            later = [s.arrival_number > victim.arrival_number for s in self.carried]
            place = later.index(True) if True in later else len(later)
            self.carried.insert(place, victim)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.expected:
            sequence = data.draw(st.sampled_from(self.expected))
            assert self.queue.remove(sequence.request_id) is sequence
            self.forget(sequence)
            assert self.queue.remove(sequence.request_id) is None

    @rule(order=st.sampled_from(Order))
    def reorder(self, order: Order) -> None:
        self.queue.order = order

    @rule(data=st.data())
    def move_everything_to_another_queue(self, data: st.DataObject) -> None:
        order, waiting = self.queue.order, self.expected
        assert self.queue.clear() == waiting
        assert not len(self.queue)
        carried = data.draw(st.permutations(self.running)) + waiting
        self.queue = WaitingQueue(order)
        self.queue.push_carried(carried)
        self.fresh, self.carried, self.running = [], carried, []
        # From here on the test's rule for a preempted one needs numbers in the list's order.
        if carried != sorted(carried, key=lambda s: s.arrival_number):
            for sequence in carried:
                self.queue.remove(sequence.request_id)
                sequence.arrival_number = -1
            self.queue.push_carried(carried)

    @invariant()
    def same_order(self) -> None:
        queue, expected = self.queue, self.expected
        assert list(queue) == expected
        assert queue.peek() is (expected[0] if expected else None)
        assert len(queue) == len(expected)

    def forget(self, sequence: Sequence) -> None:
        (self.fresh if sequence in self.fresh else self.carried).remove(sequence)


QueueAgainstAList.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestAQueueDoesWhatASortedListDoes = QueueAgainstAList.TestCase


@given(numbers=st.lists(st.integers(-1, 9)), order=st.sampled_from(Order))
def test_carried_sequences_keep_the_given_order_whatever_numbers_they_bring(
    numbers: list[int], order: Order
) -> None:
    queue = WaitingQueue(order)
    queue.push(make_sequence("fresh"))
    carried = [make_sequence(str(i)) for i in range(len(numbers))]
    for sequence, number in zip(carried, numbers, strict=True):
        sequence.arrival_number = number
    queue.push_carried(carried)
    assert names(queue) == [*(s.request_id for s in carried), "fresh"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order.FCFS, ["carried", "long", "urgent", "short"]),
        (Order.SHORTEST_PROMPT, ["carried", "short", "urgent", "long"]),
        (Order.PRIORITY, ["urgent", "carried", "long", "short"]),
    ],
)
def test_the_order_can_be_changed_while_requests_wait(order: Order, expected: list[str]) -> None:
    queue = WaitingQueue()
    queue.push(make_sequence("long", prompt_len=9, priority=1))
    queue.push(make_sequence("urgent", prompt_len=5))
    queue.push(make_sequence("short", prompt_len=2, priority=1))
    queue.push_carried([make_sequence("carried", prompt_len=20, priority=1)])
    queue.order = order
    assert names(queue) == expected
    assert [queue.pop().request_id for _ in range(4)] == expected


def test_sequences_preempted_in_any_order_return_in_the_order_of_their_arrival() -> None:
    queue = WaitingQueue()
    for name in "abcd":
        queue.push(make_sequence(name))
    running = [queue.pop() for _ in range(3)]
    for nth in (1, 2, 0):
        queue.push_carried([running[nth]])
    assert names(queue) == ["a", "b", "c", "d"]


def test_who_arrives_after_an_adoption_is_preempted_behind_the_adopted() -> None:
    old = WaitingQueue()
    for name in "abc":
        old.push(make_sequence(name))
    new = WaitingQueue()
    new.push_carried(old.clear())
    new.push(make_sequence("later"))
    running = [new.pop() for _ in range(4)]
    for sequence in reversed(running):
        new.push_carried([sequence])
    assert names(new) == ["a", "b", "c", "later"]


def test_a_request_removed_while_others_wait_is_gone_and_may_come_again() -> None:
    queue = WaitingQueue()
    for name in "abc":
        queue.push(make_sequence(name))
    assert queue.remove("a") is not None
    queue.push(make_sequence("a"))
    assert names(queue) == ["b", "c", "a"]
    assert queue.remove("unknown") is None
