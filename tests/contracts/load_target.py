"""The conformance suite of ``tuner.load.targets.LoadTarget``.

A test module subclasses :class:`LoadTargetContract` and provides ``target``: one that serves
prompts of up to 100 ids below 256 with up to 400 output tokens, a few milliseconds each.
"""

from __future__ import annotations

import threading
import time

from engine.spec.measurement import Outcome
from tuner.load.targets import Ending, LoadTarget

TOO_LONG = 100_000
WAIT_S = 30.0


class Call:
    """One request to a target: its stamps and its ending."""

    def __init__(
        self,
        target: LoadTarget,
        index: int,
        *,
        prompt: int = 8,
        tokens: int = 5,
        first_id: int = 3,
    ) -> None:
        self.stamps: list[float] = []
        self.endings: list[Ending] = []
        self.done = threading.Event()
        self.called_s = time.monotonic()
        ids = (first_id, *(3 + i % 200 for i in range(prompt - 1)))
        target.send(index, ids, tokens, self.stamps.append, self._end)

    def _end(self, ending: Ending) -> None:
        self.endings.append(ending)
        self.done.set()

    def wait(self) -> Ending:
        assert self.done.wait(WAIT_S), "the target never ended the request"
        return self.endings[0]


class LoadTargetContract:
    """Subclasses provide the fixture ``target``."""

    def test_a_request_gets_exactly_the_tokens_it_wants_with_rising_stamps(
        self, target: LoadTarget
    ) -> None:
        call = Call(target, 1, tokens=7)
        assert call.wait().outcome is Outcome.COMPLETED
        assert len(call.stamps) == 7
        assert call.stamps == sorted(call.stamps)
        assert call.called_s < call.stamps[0]
        assert call.stamps[-1] <= time.monotonic()

    def test_many_requests_run_at_once_and_each_ends_once(self, target: LoadTarget) -> None:
        calls = [Call(target, 100 + i, tokens=3 + i % 4) for i in range(24)]
        for i, call in enumerate(calls):
            assert call.wait().outcome is Outcome.COMPLETED
            assert len(call.stamps) == 3 + i % 4
            assert len(call.endings) == 1

    def test_a_request_the_server_refuses_ends_as_errored_in_its_own_words(
        self, target: LoadTarget
    ) -> None:
        ending = Call(target, 200, prompt=TOO_LONG).wait()
        assert ending.outcome is Outcome.ERRORED
        assert str(TOO_LONG) in str(ending.error)

    def test_a_target_without_watched_devices_tells_no_energy(self, target: LoadTarget) -> None:
        assert target.read_energy().joules == {}

    def test_a_cancelled_request_frees_its_place(self, target: LoadTarget) -> None:
        long = Call(target, 300, tokens=400)
        target.cancel(300)
        target.cancel(999)
        assert Call(target, 301).wait().outcome is Outcome.COMPLETED
        assert not long.endings or long.endings[0].outcome is Outcome.ERRORED
        assert len(long.stamps) < 400
