"""The executor of one rank in the caller's own process, on a thread of its own."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from engine.executors.protocol import ExecutorInfo
from engine.parallel.mesh import solo_groups
from engine.rank.answers import PendingAnswer
from engine.rank.runner import ModelRunner
from engine.spec.config import EngineConfig
from engine.spec.errors import EngineError, PlanError, RankError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.share import RankShare
from engine.spec.steps import StepPlan, StepResult

NOT_RUNNING = "this executor cannot run steps: it is closed or was not started"
DEVICE_POLL_S = 50e-6


@dataclass(eq=False)
class _Flight:
    """A step in flight; ``outcome`` is set once its thread is done with it."""

    step: StepPlan
    submitted_s: float
    outcome: PendingAnswer | EngineError | None = None

    @property
    def is_done(self) -> bool:
        """Whether its result, or its error, is there."""
        if isinstance(self.outcome, PendingAnswer):
            return self.outcome.is_ready
        return self.outcome is not None


class _RankThread:
    """Makes a runner, whose steps it runs in order until closed. After a step failed, all later
    ones fail. Raises what ``make`` does.

    The thread is a daemon, so that a step that hangs does not keep the program from ending. It also
    makes the runner, because OpenMP keeps a set of threads for each thread that computes: one
    thread for making and another for running would give more threads than cores, which then sleep
    between products (decode by two threads was 6 to 14 % slower).
    """

    def __init__(self, make: Callable[[], ModelRunner]) -> None:
        self._waiting: deque[_Flight] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._failure: EngineError | None = None
        self._made = threading.Event()
        self._runner: ModelRunner | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(make,), name="inline-rank", daemon=True
        )
        self._thread.start()
        self._made.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def submit(self, flight: _Flight) -> None:
        """Queue a step."""
        with self._changed:
            self._waiting.append(flight)
            self._changed.notify_all()

    def wait_until_run(self, flight: _Flight, timeout_s: float) -> None:
        """Return when ``flight`` has an outcome, or after ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: flight.outcome is not None, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Drop the queued steps; wait at most ``timeout_s`` for the step that runs. The runner's
        memory is free afterwards, even if somebody keeps an error of it with its traceback.
        """
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._runner = None

    @property
    def runner(self) -> ModelRunner:
        """What it made. Not to be asked after :meth:`close`."""
        assert self._runner is not None, "it is there until it is closed"
        return self._runner

    def _run(self, make: Callable[[], ModelRunner]) -> None:
        try:
            self._runner = make()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._made.set()
        while (flight := self._next()) is not None:
            outcome = self._outcome(flight.step)
            with self._changed:
                flight.outcome = outcome
                self._changed.notify_all()

    def _next(self) -> _Flight | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return None if self._is_closed else self._waiting.popleft()

    def _outcome(self, step: StepPlan) -> PendingAnswer | EngineError:
        if self._failure is not None:
            return RankError(f"step {step.step_id} was not run: {self._failure}")
        runner = self.runner
        try:
            prepared = runner.prepare(step)
            answer = runner.execute(prepared)
        except EngineError as error:
            self._failure = error
        except Exception as error:
            self._failure = RankError(f"step {step.step_id} failed: {error!r}")
            self._failure.__cause__ = error
            # Its frames hold what they worked on; on a device that is the cache memory that a new
            # rank needs.
            traceback.clear_frames(error.__traceback__)
        finally:
            del runner
        if self._failure is not None:
            return self._failure
        assert answer is not None, "a world of one rank is its own last stage"
        answer.prepare_wait_s = prepared.seconds
        return answer


class InlineExecutor:
    """Runs steps on one thread; see ``engine.executors.protocol.Executor``.

    Raises:
        PlanError: the plan has more than one rank.
    """

    needs_inputs = True

    def __init__(self, config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> None:
        if plan.replica_size != 1:
            raise PlanError(
                f"plan {plan} needs {plan.replica_size} ranks per replica; the inline executor "
                "runs one (executor=process runs any number)"
            )
        self._config = config
        self._model = model
        self._plan = plan.replica
        self._in_flight: deque[_Flight] = deque()
        self._rank: _RankThread | None = None
        self._finished_s: float | None = None

    def start(self) -> ExecutorInfo:
        share = RankShare.of(
            self._config,
            self._model,
            self._plan,
            rank=0,
            device=self._config.device,
            has_graphs=True,
        )
        self._rank = _RankThread(partial(self._make_runner, share))
        runner = self._rank.runner
        self._finished_s = None
        return ExecutorInfo(
            num_kv_blocks=share.num_kv_blocks,
            weight_bytes=(runner.weight_bytes,),
            kv_bytes=(runner.kv_bytes,),
            depth=1,
            computes_by=runner.computes_by,
        )

    def submit(self, step: StepPlan) -> None:
        rank = self._running()
        assert len(self._in_flight) < 2, "one step runs and one waits, no more"
        flight = _Flight(step, time.perf_counter())
        self._in_flight.append(flight)
        rank.submit(flight)

    def is_ready(self, timeout_s: float) -> bool:
        if self._rank is None or not self._in_flight:
            return True
        deadline_s = time.monotonic() + timeout_s
        flight = self._in_flight[0]
        if flight.outcome is None:
            self._rank.wait_until_run(flight, timeout_s)
        while not flight.is_done and flight.outcome is not None and time.monotonic() < deadline_s:
            time.sleep(DEVICE_POLL_S)
        return flight.is_done

    def collect(self, timeout_s: float | None = None) -> StepResult:
        self._running()
        if not self._in_flight:
            raise RankError("no step is in flight; submit one before collecting")
        limit_s = self._config.step_timeout_s if timeout_s is None else timeout_s
        is_ready = self.is_ready(limit_s)
        flight = self._in_flight.popleft()
        if not is_ready:
            raise RankError(f"step {flight.step.step_id} was not done within {limit_s:g} s", rank=0)
        if isinstance(flight.outcome, EngineError):
            raise flight.outcome
        assert flight.outcome is not None, "a step that is ready has an outcome"
        return self._result(flight, flight.outcome)

    def check(self) -> None:
        self._running()

    def close(self) -> None:
        rank, self._rank = self._rank, None
        self._in_flight.clear()
        if rank is None:
            return
        rank.close(self._config.step_timeout_s)
        if self._config.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()

    def _make_runner(self, share: RankShare) -> ModelRunner:
        config = self._config
        if config.threads_per_rank is not None and not config.device.startswith("cuda"):
            torch.set_num_threads(config.threads_per_rank)
        return ModelRunner(share, groups=solo_groups())

    def _running(self) -> _RankThread:
        if self._rank is None:
            raise RankError(NOT_RUNNING)
        return self._rank

    def _result(self, flight: _Flight, answer: PendingAnswer) -> StepResult:
        if self._finished_s is not None:
            answer.idle_s = max(0.0, flight.submitted_s - self._finished_s)
        result = answer.wait()
        self._finished_s = answer.finished_s
        return result
