"""The load driver: sends a workload to a target and measures what comes back.

Open loop: a request is sent at its time whether or not earlier ones have returned, so a slow
target cannot slow its own load down. The driver's own lateness is part of the measurement.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from tuner.load.targets import Ending, EngineTarget, LoadTarget
from tuner.spec.errors import LoadError
from tuner.workload.prompts import PromptMaker
from tuner.workload.workload import Arrival, ClosedLoop, Workload

__all__ = ["Ending", "EngineTarget", "LoadProgress", "LoadTarget", "run_load"]

# Wait this long at most between two looks at `should_stop`.
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """Where a run stands. ``error`` holds the words of the latest failure."""

    total: int
    sent: int
    completed: int
    errored: int
    timed_out: int
    error: str | None = None

    @property
    def in_flight(self) -> int:
        return self.sent - self.completed - self.errored - self.timed_out


def run_load(
    workload: Workload,
    target: LoadTarget,
    *,
    seed: int,
    timeout_s: float,
    vocab_size: int,
    fidelity: Fidelity = Fidelity.MEASURED,
    drain_s: float | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    on_ended: Callable[[RequestTiming], None] = lambda _: None,
    should_stop: Callable[[], bool] | None = None,
) -> Measurement:
    """Send every request of ``workload`` and wait for the answers; blocks until then.

    A request without its last token ``timeout_s`` after its scheduled time is timed out. The run
    ends when every request has ended, ``drain_s`` after the last one was sent, or when
    ``should_stop`` says so: requests unfinished then (in an open loop also unsent) are cut.
    ``on_progress`` and ``on_ended`` are called on this thread after each ending, the latter with
    the request's timing. Energy is what the target's devices took from just before the run to just
    after it.

    Raises:
        LoadError: a timeout or vocabulary that cannot be.
    """
    if not timeout_s > 0 or vocab_size < 1:
        raise LoadError(f"timeout_s={timeout_s}, vocab_size={vocab_size}: both must be above 0")
    driver = _Driver(
        workload,
        target,
        PromptMaker(seed=seed, vocab_size=vocab_size),
        timeout_s=timeout_s,
        on_progress=on_progress,
        on_ended=on_ended,
        should_stop=should_stop,
    )
    before = target.read_energy()
    if workload.closed is None:
        driver.run_open(drain_s)
    else:
        driver.run_closed(workload.closed, drain_s)
    return replace(driver.measurement(fidelity), energy=before.until(target.read_energy()))


@dataclass(kw_only=True)
class _Life:
    """One request while it is on its way. ``token_s`` grows on the target's threads."""

    arrival: Arrival
    scheduled_s: float
    sent_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    outcome: Outcome | None = None

    def timing(self, start_s: float) -> RequestTiming:
        sent_s = self.scheduled_s if self.sent_s is None else self.sent_s
        return RequestTiming(
            scheduled_s=self.scheduled_s - start_s,
            sent_s=sent_s - start_s,
            token_s=tuple(stamp - start_s for stamp in self.token_s),
            prompt_tokens=self.arrival.input_tokens,
            outcome=self.outcome or Outcome.CUT,
        )


@dataclass(frozen=True, kw_only=True)
class _Ended:
    index: int
    at_s: float
    ending: Ending


class _Driver:
    """One run. Owned by the calling thread; only ``_ended`` and token lists are shared."""

    def __init__(
        self,
        workload: Workload,
        target: LoadTarget,
        prompts: PromptMaker,
        *,
        timeout_s: float,
        on_progress: Callable[[LoadProgress], None] | None,
        on_ended: Callable[[RequestTiming], None],
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._workload = workload
        self._target = target
        self._prompts = prompts
        self._timeout_s = timeout_s
        self._on_progress = on_progress
        self._on_ended = on_ended
        self._should_stop = should_stop or (lambda: False)
        self._lives: dict[int, _Life] = {}
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        # Timeouts are equal, so deadlines come in the order of sending.
        self._deadlines: deque[int] = deque()
        self._counts = dict.fromkeys(Outcome, 0)
        self._in_flight = 0
        self._error: str | None = None
        self._start_s = time.monotonic()

    # -- the two loops ---------------------------------------------------------------------------

    def run_open(self, drain_s: float | None) -> None:
        """Send each request at its own time, then wait for the rest."""
        self._start_s = time.monotonic()
        for index, arrival in enumerate(self._workload.arrivals):
            prompt = self._prompts.make(index, arrival)
            due_s = self._start_s + arrival.arrival_s
            if not self._wait_until(due_s):
                break
            self._send(index, arrival, prompt, due_s)
        self._drain(drain_s)

    def run_closed(self, closed: ClosedLoop, drain_s: float | None) -> None:
        """Keep one request of each client on its way; each ending sends the next."""
        waiting = deque(enumerate(self._workload.arrivals))
        self._start_s = free_s = time.monotonic()
        until_s = float("inf") if closed.limit_s is None else self._start_s + closed.limit_s
        num_started = 0
        while waiting and free_s < until_s and not self._should_stop():
            first_s = float("inf")
            if num_started < closed.concurrency:
                first_s = self._start_s + closed.start_s(num_started)
            is_first = first_s <= time.monotonic()
            if is_first or self._in_flight < num_started:
                index, arrival = waiting.popleft()
                due_s = first_s if is_first else free_s
                self._send(index, arrival, self._prompts.make(index, arrival), due_s)
                num_started += is_first
                continue
            ended = self._next_ended(min(until_s, first_s, time.monotonic() + _POLL_S))
            free_s = ended.at_s if ended else time.monotonic()
        self._drain(drain_s)

    def _drain(self, drain_s: float | None) -> None:
        until_s = float("inf") if drain_s is None else time.monotonic() + drain_s
        while self._in_flight and time.monotonic() < until_s and not self._should_stop():
            self._next_ended(min(until_s, time.monotonic() + _POLL_S))
        for index, life in self._lives.items():
            if life.outcome is None:
                self._end(index, Outcome.CUT)
                self._target.cancel(index)

    # -- steps -----------------------------------------------------------------------------------

    def _wait_until(self, due_s: float) -> bool:
        """Take endings in until ``due_s``; False when the run was told to stop."""
        while (now_s := time.monotonic()) < due_s:
            if self._should_stop():
                return False
            self._next_ended(min(due_s, now_s + _POLL_S))
        return not self._should_stop()

    def _send(self, index: int, arrival: Arrival, prompt: tuple[int, ...], due_s: float) -> None:
        life = _Life(arrival=arrival, scheduled_s=due_s)
        self._lives[index] = life
        self._deadlines.append(index)
        self._in_flight += 1
        life.sent_s = time.monotonic()
        self._target.send(
            index,
            prompt,
            arrival.output_tokens,
            life.token_s.append,
            partial(self._note_ending, index),
        )

    def _note_ending(self, index: int, ending: Ending) -> None:
        """Called on the target's threads."""
        self._ended.put(_Ended(index=index, at_s=time.monotonic(), ending=ending))

    def _next_ended(self, until_s: float) -> _Ended | None:
        """The next ending before ``until_s``; None when there was none or a request timed out."""
        while True:
            before = self._in_flight
            deadline_s = self._expire()
            if self._in_flight < before:
                return None
            wait_s = min(until_s, deadline_s) - time.monotonic()
            try:
                ended = self._ended.get(timeout=wait_s) if wait_s > 0 else self._ended.get_nowait()
            except queue.Empty:
                if time.monotonic() >= until_s:
                    return None
                continue
            if self._take(ended):
                return ended

    def _take(self, ended: _Ended) -> bool:
        """Record an ending; False for one that came after its timeout."""
        life = self._lives[ended.index]
        if life.outcome is not None:
            return False
        if ended.ending.sent_s is not None:
            life.sent_s = ended.ending.sent_s
        self._end(ended.index, ended.ending.outcome, ended.ending.error)
        return True

    def _expire(self) -> float:
        """Time out what is overdue; returns the next deadline (infinite without one)."""
        while self._deadlines:
            index = self._deadlines[0]
            life = self._lives[index]
            deadline_s = life.scheduled_s + self._timeout_s
            if life.outcome is None and time.monotonic() < deadline_s:
                return deadline_s
            self._deadlines.popleft()
            if life.outcome is None:
                self._end(index, Outcome.TIMED_OUT, f"no answer within {self._timeout_s:g} s")
                self._target.cancel(index)
        return float("inf")

    def _end(self, index: int, outcome: Outcome, error: str | None = None) -> None:
        self._lives[index].outcome = outcome
        self._counts[outcome] += 1
        self._in_flight -= 1
        self._error = error or self._error
        self._on_ended(self._lives[index].timing(self._start_s))
        if self._on_progress is not None:
            self._on_progress(self._progress())

    # -- answers ---------------------------------------------------------------------------------

    def _progress(self) -> LoadProgress:
        return LoadProgress(
            total=len(self._workload),
            sent=len(self._lives),
            completed=self._counts[Outcome.COMPLETED],
            errored=self._counts[Outcome.ERRORED],
            timed_out=self._counts[Outcome.TIMED_OUT],
            error=self._error,
        )

    def measurement(self, fidelity: Fidelity) -> Measurement:
        """Timings in seconds from the start of the run.

        Unsent requests of an open loop had a scheduled time, so they count as cut; those of a
        closed loop had none and are left out.
        """
        rest = () if self._workload.closed else self._workload.arrivals[len(self._lives) :]
        unsent = tuple(
            _Life(arrival=arrival, scheduled_s=self._start_s + arrival.arrival_s)
            for arrival in rest
        )
        sent = tuple(self._lives.values())
        lags_ms = [(x.sent_s - x.scheduled_s) * 1e3 for x in sent if x.sent_s is not None]
        return Measurement(
            fidelity=fidelity,
            timings=tuple(life.timing(self._start_s) for life in (*sent, *unsent)),
            driver_lag_ms=Distribution.of(max(0.0, lag) for lag in lags_ms),
        )
