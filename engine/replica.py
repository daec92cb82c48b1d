"""One replica of the model: a scheduler, an executor, and the thread that runs the step loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from engine.config import EngineConfig, ModelConfig
from engine.errors import EngineError, QueueFullError, RankError
from engine.executors.protocol import Executor, ExecutorInfo
from engine.inputs import step_plan
from engine.output import RequestStream
from engine.plan import Mode, ParallelPlan
from engine.policy import EnginePolicy
from engine.request import FinishReason, Request
from engine.scheduled import ScheduledStep, StepOutcome
from engine.scheduler import Scheduler
from engine.sequences import Sequence
from engine.steps import StepResult, StepSample, int32
from engine.telemetry import Telemetry

T = TypeVar("T")
ExecutorFactory = Callable[[], Executor]
MAX_RESTARTS_WITHOUT_PROGRESS = 3
# How soon a caller notices that the loop it waits for has ended.
CALL_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class _InFlight:
    step: ScheduledStep
    started_s: float
    schedule_s: float


class Replica:
    """Runs one replica's steps on its own thread; other threads only post commands.

    A rank that fails is replaced: ranks restart and sequences go on from their tokens so far.
    After ``MAX_RESTARTS_WITHOUT_PROGRESS`` restarts without one finished step the replica gives
    up, ends its requests with an error and is unhealthy.
    """

    def __init__(
        self,
        *,
        index: int,
        config: EngineConfig,
        model: ModelConfig,
        policy: EnginePolicy,
        make_executor: ExecutorFactory,
        telemetry: Telemetry,
        first_step_id: int = 0,
    ) -> None:
        self.index = index
        self.telemetry = telemetry
        self.failure: str | None = None
        self._config = config
        self._model = model
        self._policy = policy
        self._plan: ParallelPlan = policy.plan.replica
        self._make_executor = make_executor
        self._first_step_id = first_step_id
        self._streams: dict[str, RequestStream] = {}
        self._queued = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._in_flight: deque[_InFlight] = deque()
        self._restarts_without_progress = 0
        self._seen_preemptions = 0
        self._started: Future[ExecutorInfo] = Future()
        self._thread = threading.Thread(target=self._run, name=f"replica-{index}", daemon=True)
        self.scheduler: Scheduler
        self._executor: Executor

    # -- called from other threads -------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        with self._wake:
            return self.scheduler.num_waiting + self._queued

    @property
    def load_tokens(self) -> int:
        """Tokens its accepted requests may still grow to."""
        return sum(request.max_len for request in self.list_requests())

    def has(self, request_id: str) -> bool:
        """Whether the request is in progress here."""
        return request_id in self._streams

    def list_requests(self) -> list[Request]:
        """Requests in progress."""
        return [stream.request for stream in list(self._streams.values())]

    def launch(self) -> None:
        """Begin to start; :meth:`wait_started` tells the result."""
        self._thread.start()

    def wait_started(self) -> ExecutorInfo:
        """Wait for the executor. Raises what its start raised."""
        return self._started.result()

    def submit(self, stream: RequestStream, *, is_admitted: bool = False) -> None:
        """Accept one request; ``is_admitted``: it was accepted before and only waited.

        Raises:
            RequestError: it could never run here.
            QueueFullError: the admission limit is reached.
        """
        self.scheduler.check_request(stream.request)
        limit = self._policy.caps.max_queue
        if not is_admitted and limit is not None and self.num_waiting >= limit:
            raise QueueFullError(f"{self.num_waiting} requests wait, max_queue is {limit}")
        with self._wake:
            self._queued += 1
        self._streams[stream.request.request_id] = stream
        self._post(lambda: self._add(stream))

    def adopt(self, sequences: list[Sequence], streams: dict[str, RequestStream]) -> None:
        """Take over sequences of replicas that were stopped, with their way back to callers."""
        self._streams.update(streams)
        self._post(lambda: self.scheduler.adopt(sequences))

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary; unknown ids are ignored."""
        self._post(lambda: self._abort(request_id))

    def call(self, command: Callable[[], T]) -> T:
        """Run ``command`` on the loop thread between two steps and return its result.

        Raises:
            RankError: the loop has ended.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(command())
            except BaseException as error:
                future.set_exception(error)

        self._post(run)
        while not future.done():
            wait([future], timeout=CALL_POLL_S)
            if not future.done() and not self._thread.is_alive():
                raise RankError(f"replica {self.index} has ended: {self.failure or 'closed'}")
        return future.result()

    def set_hot(self, policy: EnginePolicy) -> int:
        """Obey new hot settings from the next step on, whose number is returned (loop thread)."""
        self._policy = policy
        self.scheduler.caps = policy.caps
        self.scheduler.chooser = policy.chooser
        self.scheduler.order = policy.order
        return self.scheduler.next_step_id

    def stop(self) -> tuple[list[Sequence], dict[str, RequestStream]]:
        """Finish the steps in flight, end the ranks, and hand over all unfinished sequences."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()
        while self._commands:  # posted between the last step and the end of the thread
            self._commands.popleft()()
        self.scheduler.discard_outstanding()  # left over only by a loop that failed
        streams, self._streams = self._streams, {}
        return self.scheduler.release(), streams

    # -- the loop thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._start_executor()
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            while not self._is_stopping:
                self._run_commands()
                if not self._step():
                    self._wait_for_work()
            self._finish_in_flight()
        except BaseException as error:  # a bug of ours must not leave callers waiting for ever
            self._give_up(f"the step loop failed: {error!r}")
            raise
        finally:
            self._executor.close()

    def _step(self) -> bool:
        """One turn: schedule, submit, collect, commit, emit. False when there was nothing."""
        try:
            self._fill()
            if not self._in_flight:
                return False
            flight, result, ended_s = self._collect()
        except RankError as error:
            self._recover(error)
            return True
        outcome = self.scheduler.commit(flight.step, int32(result.token_ids))
        self._emit(flight.step, outcome, result, ended_s)
        self._record(flight, result, ended_s)
        return True

    def _fill(self) -> None:
        """Submit steps until the pipeline is full or nothing can run."""
        while True:
            started_s = time.monotonic()
            step = self.scheduler.schedule()
            if step is None:
                return
            plan = step_plan(
                step,
                self.scheduler.table,
                with_inputs=self._executor.needs_inputs,
                return_logits=self._config.return_logits,
            )
            submitted_s = time.monotonic()
            flight = _InFlight(step=step, started_s=submitted_s, schedule_s=submitted_s - started_s)
            self._in_flight.append(flight)
            self._stamp_first_steps(step, submitted_s)
            self._executor.submit(plan)

    def _stamp_first_steps(self, step: ScheduledStep, now_s: float) -> None:
        """Note when requests entered their first step (the end of their queue time)."""
        for row in np.flatnonzero(step.context_lens == 0).tolist():
            stream = self._streams.get(step.sequences[row].request_id)
            if stream is not None and stream.scheduled_s is None:
                stream.scheduled_s = now_s

    def _collect(self) -> tuple[_InFlight, StepResult, float]:
        result = self._executor.collect()
        return self._in_flight.popleft(), result, time.monotonic()

    def _emit(
        self, step: ScheduledStep, outcome: StepOutcome, result: StepResult, now_s: float
    ) -> None:
        reasons = {seq.request_id: reason for seq, reason in outcome.finished}
        if result.logits is not None:
            self._keep_logits(step, result.logits)
        self.telemetry.generation_tokens += len(outcome.sampled)
        for sequence, token_id in outcome.sampled:
            stream = self._streams.get(sequence.request_id)
            if stream is None:
                continue
            reason = reasons.get(sequence.request_id)
            is_stopped = stream.push(token_id, reason, now_s)
            if is_stopped and reason is None:
                self.scheduler.abort(sequence.request_id)
            if is_stopped or reason:
                self._forget(sequence.request_id, is_stopped or reason or FinishReason.STOP)

    def _keep_logits(self, step: ScheduledStep, raw: bytes) -> None:
        sampled = np.flatnonzero(step.is_sampled).tolist()
        rows = np.frombuffer(raw, np.float64).reshape(len(sampled), -1)
        for nth, row in zip(sampled, rows, strict=True):
            sequence = step.sequences[nth]
            if stream := self._streams.get(sequence.request_id):
                stream.logits.append(row)

    def _record(self, flight: _InFlight, result: StepResult, ended_s: float) -> None:
        shape = flight.step.shape
        step_s = ended_s - flight.started_s
        self._restarts_without_progress = 0
        self.scheduler.pace.observe(shape.mode, shape.num_tokens, step_s)
        self.telemetry.preemptions += self.scheduler.num_preemptions - self._seen_preemptions
        self._seen_preemptions = self.scheduler.num_preemptions
        multiple = self._plan.sp if shape.mode is Mode.BASE else 1
        self.telemetry.record_step(
            StepSample(
                step_id=flight.step.step_id,
                plan=str(self._plan),
                replica=self.index,
                shape=shape,
                padded_tokens=-(-shape.num_tokens // multiple) * multiple,
                start_s=flight.started_s,
                step_s=step_s,
                schedule_s=flight.schedule_s,
                input_s=result.input_s,
                forward_s=result.forward_s,
                communication_s=result.communication_s,
                sample_s=result.sample_s,
                output_s=time.monotonic() - ended_s,
                kv_usage=self.scheduler.kv_usage,
            )
        )

    # -- commands ------------------------------------------------------------------------------

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _wait_for_work(self) -> None:
        with self._wake:
            while not self._commands and not self._is_stopping:
                self._wake.wait()

    def _add(self, stream: RequestStream) -> None:
        self.telemetry.prompt_tokens += len(stream.request.prompt_ids)
        if self.failure is not None:
            self._queued -= 1
            self._end(stream.request.request_id, FinishReason.ERROR, self.failure)
            return
        try:
            with self._wake:  # nobody may count it twice or not at all on its way
                self._queued -= 1
                self.scheduler.add(stream.request, is_admitted=True)
        except EngineError as error:
            self._end(stream.request.request_id, FinishReason.ERROR, str(error))

    def _abort(self, request_id: str) -> None:
        if request_id in self._streams:
            self.scheduler.abort(request_id)
            self._end(request_id, FinishReason.ABORT)

    def _end(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        if request_id in self._streams:  # ended already when the replica gave up
            self._streams[request_id].end(reason, time.monotonic(), error)
            self._forget(request_id, reason)

    def _forget(self, request_id: str, reason: FinishReason) -> None:
        stream = self._streams.pop(request_id)
        self.telemetry.record_finish(reason, stream.timing(reason))

    # -- start, end and failure ----------------------------------------------------------------

    def _start_executor(self) -> None:
        self._executor = self._make_executor()
        try:
            info = self._executor.start()
        except BaseException:
            self._executor.close()
            raise
        capacity = info.num_kv_blocks * self._config.block_size
        context = self._config.max_model_len or self._model.max_positions
        self.scheduler = Scheduler(
            caps=self._policy.caps,
            envelope=self._config.start_envelope,
            chooser=self._policy.chooser,
            num_blocks=info.num_kv_blocks,
            block_size=self._config.block_size,
            max_model_len=min(context, capacity),
            depth=info.depth,
            order=self._policy.order,
            eos_token_ids=self._model.eos_token_ids,
        )
        self.scheduler.next_step_id = self._first_step_id
        self._seen_preemptions = 0
        if not self._started.done():
            self._started.set_result(info)

    def _finish_in_flight(self) -> None:
        """Commit what the ranks are still computing, so that no token is computed twice."""
        while self._in_flight:
            try:
                flight, result, ended_s = self._collect()
            except RankError:
                self._in_flight.clear()
                self.scheduler.discard_outstanding()
                return
            outcome = self.scheduler.commit(flight.step, int32(result.token_ids))
            self._emit(flight.step, outcome, result, ended_s)

    def _recover(self, error: RankError) -> None:
        """Replace failed ranks; sequences are recomputed from their tokens so far."""
        self._in_flight.clear()
        self.scheduler.discard_outstanding()
        sequences = self.scheduler.release()
        self._first_step_id = self.scheduler.next_step_id
        self._executor.close()
        while True:
            self._restarts_without_progress += 1
            if self._restarts_without_progress > MAX_RESTARTS_WITHOUT_PROGRESS:
                self._give_up(f"ranks failed {MAX_RESTARTS_WITHOUT_PROGRESS} times: {error}")
                return
            self.telemetry.restarts += 1
            try:
                self._start_executor()
            except RankError as again:
                error = again
                continue
            self.scheduler.adopt(sequences)
            return

    def _give_up(self, why: str) -> None:
        self.failure = why
        for request_id in list(self._streams):
            self._end(request_id, FinishReason.ERROR, why)
