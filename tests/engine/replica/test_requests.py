"""A replica's register: who is in progress, and that each expires once, unless it has ended."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.replica.requests import AcceptedRequests
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.spec.request import FinishReason, Request, RequestOutput

names = st.sampled_from("abcdefgh")
times = st.integers(0, 20).map(float)


def stream(name: str, deadline_s: float | None, outputs: list[RequestOutput]) -> RequestStream:
    request = Request(request_id=name, prompt_ids=(1,), deadline_s=deadline_s)
    return RequestStream(request, outputs.append, None)


class RegisterAgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.telemetry = Telemetry()
        self.accepted = AcceptedRequests(self.telemetry)
        self.outputs: list[RequestOutput] = []
        self.model: dict[str, RequestStream] = {}
        self.deadlines: dict[str, float] = {}
        self.num_ended = 0

    @rule(name=names, deadline_s=st.none() | times)
    def enter(self, name: str, deadline_s: float | None) -> None:
        if name in self.model:
            return
        self.model[name] = stream(name, deadline_s, self.outputs)
        self.accepted.enter(self.model[name])
        if deadline_s is not None:
            self.deadlines[name] = deadline_s

    @rule(name=names)
    def end(self, name: str) -> None:
        self.accepted.end(name, FinishReason.ABORT)
        self.num_ended += self.model.pop(name, None) is not None
        self.deadlines.pop(name, None)

    @rule(now_s=times)
    def pop_expired(self, now_s: float) -> None:
        due = [name for name, deadline_s in self.deadlines.items() if deadline_s <= now_s]
        found = self.accepted.pop_expired(now_s)
        assert found == sorted(due, key=lambda name: self.deadlines[name])
        for name in due:
            del self.deadlines[name]

    @rule()
    def take_streams(self) -> None:
        assert self.accepted.take_streams() == self.model
        self.model.clear()
        self.deadlines.clear()

    @invariant()
    def everyone_in_progress_is_known_and_every_end_was_told_once(self) -> None:
        assert self.accepted.streams == self.model
        assert all(self.accepted.has(known.request) for known in self.model.values())
        assert len(self.outputs) == self.num_ended
        assert self.telemetry.finished[FinishReason.ABORT] == self.num_ended


RegisterAgainstADict.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
TestTheRegisterDoesWhatADictDoes = RegisterAgainstADict.TestCase


def test_a_request_expires_at_its_deadline_and_only_once() -> None:
    accepted = AcceptedRequests(Telemetry())
    accepted.enter(stream("a", 2.0, []))
    accepted.enter(stream("b", 1.0, []))
    assert accepted.pop_expired(0.999) == []
    assert accepted.pop_expired(1.0) == ["b"]
    assert accepted.pop_expired(5.0) == ["a"]
    assert accepted.pop_expired(5.0) == []


def test_a_request_is_not_taken_for_a_later_one_of_the_same_id() -> None:
    accepted = AcceptedRequests(Telemetry())
    first, second = stream("a", 1.0, []), stream("a", None, [])
    accepted.enter(first)
    accepted.end("a", FinishReason.ABORT)
    accepted.enter(second)
    assert not accepted.has(first.request)
    assert accepted.has(second.request)
    assert accepted.pop_expired(9.0) == []
