"""Deadlines: each request expires once, at the last deadline it was given, unless it ended."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.replica.deadlines import Deadlines

names = st.sampled_from("abcdefgh")
times = st.integers(0, 20).map(float)


class DeadlinesAgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.deadlines = Deadlines()
        self.model: dict[str, float] = {}

    @rule(name=names, deadline_s=times)
    def add(self, name: str, deadline_s: float) -> None:
        self.deadlines.add(name, deadline_s)
        self.model.pop(name, None)
        self.model[name] = deadline_s

    @rule(name=names)
    def discard(self, name: str) -> None:
        self.deadlines.discard(name)
        self.model.pop(name, None)

    @rule(now_s=times)
    def pop_expired(self, now_s: float) -> None:
        due = [name for name, deadline_s in self.model.items() if deadline_s <= now_s]
        assert self.deadlines.pop_expired(now_s) == sorted(due, key=lambda n: self.model[n])
        for name in due:
            del self.model[name]

    @invariant()
    def next_deadline_is_the_earliest(self) -> None:
        assert self.deadlines.next_s == min(self.model.values(), default=None)
        assert len(self.deadlines) == len(self.model)


DeadlinesAgainstADict.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
TestDeadlinesDoWhatADictDoes = DeadlinesAgainstADict.TestCase


def test_a_request_expires_at_its_deadline_and_only_once() -> None:
    deadlines = Deadlines()
    deadlines.add("a", 2.0)
    deadlines.add("b", 1.0)
    assert deadlines.pop_expired(0.999) == []
    assert deadlines.pop_expired(1.0) == ["b"]
    assert deadlines.next_s == 2.0
    assert deadlines.pop_expired(5.0) == ["a"]
    assert deadlines.pop_expired(5.0) == []
    assert deadlines.next_s is None
