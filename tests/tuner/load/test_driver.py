"""The load driver: open and closed loop, timeouts, cuts, its own lag."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.spec.energy import EnergyCounters
from engine.spec.measurement import Fidelity, Measurement, Outcome
from policies.report import measurement_json
from tests.engine.paced import STEP_S
from tests.tuner.engines import paced_engine
from tests.waiting import wait_until
from tuner.load.driver import LoadProgress, run_load
from tuner.load.targets import Ending, EngineTarget, OnDone, OnToken
from tuner.spec.errors import LoadError
from tuner.workload.parse import Workload, parse_workload
from tuner.workload.workload import Arrival


class EchoTarget:
    """Answers every request after 10 ms on a thread of its own, none before ``held`` of them came;
    records what it was sent.

    ``ignored`` indices are never answered, and the others at once then: no busy machine makes them
    as late.
    """

    def __init__(self, *, held: int = 1, ignored: frozenset[int] = frozenset()) -> None:
        self._num_held = held
        self._may_answer = threading.Event()
        self._ignored = ignored
        self._lock = threading.Lock()
        self.sent: dict[int, tuple[tuple[int, ...], int]] = {}
        self.cancelled: list[int] = []
        self.most_at_once = 0
        self._running = 0
        self._threads: list[threading.Thread] = []

    def send(
        self,
        index: int,
        prompt_ids: tuple[int, ...],
        output_tokens: int,
        on_token: OnToken,
        on_done: OnDone,
    ) -> None:
        with self._lock:
            self.sent[index] = (prompt_ids, output_tokens)
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        if len(self.sent) >= self._num_held:
            self._may_answer.set()
        if self._ignored:
            if index not in self._ignored:
                self._end(output_tokens, on_token, on_done)
            return
        thread = threading.Thread(target=self._answer, args=(output_tokens, on_token, on_done))
        self._threads.append(thread)
        thread.start()

    def read_energy(self) -> EnergyCounters:
        return EnergyCounters()

    def cancel(self, index: int) -> None:
        self.cancelled.append(index)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _answer(self, output_tokens: int, on_token: OnToken, on_done: OnDone) -> None:
        assert self._may_answer.wait(20)
        time.sleep(0.01)
        self._end(output_tokens, on_token, on_done)

    def _end(self, output_tokens: int, on_token: OnToken, on_done: OnDone) -> None:
        for _ in range(output_tokens):
            on_token(time.monotonic())
        with self._lock:
            self._running -= 1
        on_done(Ending(outcome=Outcome.COMPLETED))


def steady(count: int, *, gap_s: float = 0.01) -> Workload:
    base = parse_workload(f"poisson:rate={1 / gap_s},input=8,output=3,seconds=9", seed=0)
    arrivals = tuple(
        Arrival(arrival_s=i * gap_s, input_tokens=5 + i, output_tokens=1 + i % 3)
        for i in range(count)
    )
    return Workload(arrivals=arrivals, source=base.source)


def drive(workload: Workload, target: EchoTarget, **options: Any) -> Measurement:
    arguments: dict[str, Any] = {"seed": 0, "timeout_s": 20.0, "vocab_size": 300, **options}
    try:
        return run_load(workload, target, **arguments)
    finally:
        target.join()


def test_every_request_is_sent_with_its_lengths_and_measured() -> None:
    target = EchoTarget()
    workload = steady(20)
    measurement = drive(workload, target)
    assert measurement.fidelity is Fidelity.MEASURED
    assert measurement.count(Outcome.COMPLETED) == 20
    for i, arrival in enumerate(workload.arrivals):
        prompt, output_tokens = target.sent[i]
        assert len(prompt) == arrival.input_tokens
        assert output_tokens == arrival.output_tokens
        assert measurement.timings[i].output_tokens == arrival.output_tokens
        assert measurement.timings[i].prompt_tokens == arrival.input_tokens
        assert 0 <= min(prompt) <= max(prompt) < 300


def test_an_open_loop_sends_on_time_however_slow_the_target_is() -> None:
    target = EchoTarget(held=20)
    measurement = drive(steady(20), target)
    assert target.most_at_once == 20
    last_s = measurement.timings[-1].sent_s
    for i, timing in enumerate(measurement.timings):
        assert timing.scheduled_s == pytest.approx(i * 0.01)
        assert timing.sent_s >= timing.scheduled_s
        # TTFT counts from the schedule, so lateness of the driver cannot hide in it.
        assert timing.ttft_ms is not None
        assert timing.ttft_ms >= 1e3 * (last_s - timing.scheduled_s)


def test_the_drivers_own_lag_is_part_of_the_measurement() -> None:
    lag = drive(steady(10), EchoTarget()).driver_lag_ms
    assert lag.mean is not None
    assert lag.p99 is not None
    assert 0 <= lag.mean <= lag.p99


def test_a_blocking_target_shows_up_as_lag() -> None:
    class Blocking(EchoTarget):
        def send(self, *arguments: Any) -> None:
            time.sleep(0.05)
            super().send(*arguments)

    lag = drive(steady(4, gap_s=0.001), Blocking()).driver_lag_ms
    assert lag.p99 is not None
    assert lag.p99 > 100


Run = tuple[EchoTarget, Measurement, list[LoadProgress]]


@pytest.fixture(scope="module")
def one_unanswered() -> Run:
    """Six requests of which the third gets no answer, and what was told on the way."""
    target, seen = EchoTarget(ignored=frozenset({2})), list[LoadProgress]()
    return target, drive(steady(6), target, timeout_s=0.3, on_progress=seen.append), seen


def test_a_request_without_an_answer_times_out_and_is_cancelled(one_unanswered: Run) -> None:
    target, measurement, _ = one_unanswered
    assert measurement.count(Outcome.TIMED_OUT) == 1
    assert measurement.timings[2].outcome is Outcome.TIMED_OUT
    assert target.cancelled == [2]


def test_requests_unfinished_at_the_end_of_the_run_are_cut() -> None:
    target = EchoTarget(ignored=frozenset({1, 4}))
    measurement = drive(steady(6), target, drain_s=0.3)
    assert measurement.count(Outcome.CUT) == 2
    assert measurement.count(Outcome.COMPLETED) == 4
    assert sorted(target.cancelled) == [1, 4]


def test_a_run_told_to_stop_counts_the_unsent_requests_as_cut() -> None:
    target, seen = EchoTarget(), list[LoadProgress]()
    measurement = drive(
        steady(200, gap_s=0.05),
        target,
        on_progress=seen.append,
        should_stop=lambda: any(told.completed == 5 for told in seen),
    )
    assert len(measurement.timings) == 200
    assert len(target.sent) < 200
    assert (measurement.count(Outcome.COMPLETED), measurement.count(Outcome.CUT)) == (5, 195)


def test_progress_tells_each_ending_and_the_words_of_a_failure(one_unanswered: Run) -> None:
    _, _, seen = one_unanswered
    assert len(seen) == 6
    last = seen[-1]
    assert (last.total, last.sent, last.completed, last.timed_out) == (6, 6, 5, 1)
    assert last.in_flight == 0
    assert last.error == "no answer within 0.3 s"


def test_a_closed_loop_keeps_its_concurrency_and_sends_all() -> None:
    workload = parse_workload("closed:concurrency=4,input=8,output=3,requests=20", seed=0)
    target = EchoTarget(held=4)
    measurement = drive(workload, target)
    assert target.most_at_once == 4
    assert measurement.count(Outcome.COMPLETED) == 20
    assert measurement.timings[-1].scheduled_s > measurement.timings[0].scheduled_s


def test_a_closed_loop_goes_on_after_a_timeout_and_stops_at_its_limit() -> None:
    workload = parse_workload("closed:concurrency=2,input=8,output=3,requests=8", seed=0)
    target = EchoTarget(ignored=frozenset({0}))
    measurement = drive(workload, target, timeout_s=0.3)
    assert measurement.count(Outcome.COMPLETED) == 7
    limited = parse_workload(
        "closed:concurrency=1,input=8,output=3,requests=1000,seconds=0.1", seed=0
    )
    target = EchoTarget()
    measurement = drive(limited, target)
    assert 0 < measurement.count(Outcome.COMPLETED) == len(target.sent) < 1000
    assert len(measurement.timings) == len(target.sent)


def test_impossible_arguments_are_refused() -> None:
    for timeout_s in (0, float("nan")):
        with pytest.raises(LoadError, match=f"timeout_s={timeout_s}"):
            run_load(steady(1), EchoTarget(), seed=0, timeout_s=timeout_s, vocab_size=10)


def test_a_workload_runs_on_a_paced_engine_and_yields_its_step_times(tmp_path: Path) -> None:
    workload = parse_workload("poisson:rate=200,input=20,output=6,seconds=0.2", seed=3)
    with paced_engine(tmp_path) as engine:
        measurement = run_load(workload, EngineTarget(engine), seed=0, timeout_s=20, vocab_size=500)
        engine.check_integrity()
        assert engine.stats().running == engine.stats().waiting == 0
    assert measurement.count(Outcome.COMPLETED) == len(workload)
    p50 = measurement.tpot_ms.p50
    assert p50 is not None
    assert p50 >= STEP_S * 1e3 * 0.99
    assert measurement_json(measurement, None)["requests"]["completed"] == len(workload)


def test_requests_an_engine_refuses_are_errors_with_its_words(tmp_path: Path) -> None:
    workload = parse_workload("closed:concurrency=2,input=600,output=6,requests=4", seed=3)
    seen: list[LoadProgress] = []
    with paced_engine(tmp_path) as engine:
        measurement = run_load(
            workload,
            EngineTarget(engine),
            seed=0,
            timeout_s=20,
            vocab_size=500,
            on_progress=seen.append,
        )
    assert measurement.count(Outcome.ERRORED) == 4
    assert "512" in str(seen[-1].error)


def test_timed_out_requests_free_their_sequences(tmp_path: Path) -> None:
    workload = parse_workload("closed:concurrency=3,input=20,output=400,requests=3", seed=3)
    with paced_engine(tmp_path) as engine:
        measurement = run_load(
            workload, EngineTarget(engine), seed=0, timeout_s=0.1, vocab_size=500
        )
        assert measurement.count(Outcome.TIMED_OUT) == 3
        wait_until(lambda: not engine.stats().running)
