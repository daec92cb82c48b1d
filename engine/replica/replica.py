"""One replica of the model: a scheduler, an executor, and the thread that runs the step loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from engine.executors.protocol import Executor, ExecutorInfo
from engine.modes.chooser import ModeChooser
from engine.modes.table import ModeTable
from engine.replica.emission import StepEmitter
from engine.replica.handover import Handover
from engine.replica.mode_timing import mode_table_for
from engine.replica.recovery import Recovery
from engine.replica.requests import AcceptedRequests
from engine.replica.step_loop import FinishedStep, StepLoop
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.scheduler.load import LoadBook
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.table import Sequence
from engine.spec.config import EngineConfig
from engine.spec.errors import EngineError, RankError
from engine.spec.model import ModelConfig
from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request
from engine.spec.settings import Settings

T = TypeVar("T")
ExecutorFactory = Callable[[], Executor]
# How soon a caller notices that the loop it waits for has ended.
CALL_POLL_S = 0.5
# How soon an idle loop notices that a rank is gone.
IDLE_POLL_S = 0.25


class Replica:
    """Runs one replica's steps on its own thread; other threads only post commands.

    A rank that fails is replaced: ranks restart and sequences go on from their tokens so far.
    Where that fails too often (see ``Recovery``) the replica gives up, ends its requests with an
    error and is unhealthy.
    """

    def __init__(
        self,
        *,
        index: int,
        config: EngineConfig,
        model: ModelConfig,
        settings: Settings,
        make_executor: ExecutorFactory,
        telemetry: Telemetry,
        first_step_id: int = 0,
        mode_table: ModeTable | None = None,
    ) -> None:
        self.index = index
        self.telemetry = telemetry
        self.failure: str | None = None
        self._config = config
        self._model = model
        self._settings = settings
        self._plan: ParallelPlan = settings.plan.replica
        self._make_executor = make_executor
        self._first_step_id = first_step_id
        self._accepted = AcceptedRequests(telemetry)
        self._load = LoadBook()
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._is_recovering = False
        self._unsaid: FinishedStep | None = None
        self._recovery = Recovery(telemetry, self._start_ranks)
        self._started: Future[ExecutorInfo] = Future()
        self._thread = threading.Thread(target=self._run, name=f"replica-{index}", daemon=True)
        self.mode_table = mode_table
        self.scheduler: Scheduler
        self._executor: Executor
        self._loop: StepLoop
        self._emitter: StepEmitter

    # -- called from other threads -------------------------------------------------------------

    @property
    def plan(self) -> ParallelPlan:
        """What its ranks run: the engine's plan with dp=1."""
        return self._plan

    @property
    def is_empty(self) -> bool:
        """Whether no request is in progress here."""
        return not self._accepted.streams

    @property
    def num_waiting(self) -> int:
        with self._wake:
            return self.scheduler.num_waiting + self._load.num_coming

    @property
    def load_tokens(self) -> int:
        """Tokens its requests may still grow to: the load that routing balances."""
        return self._load.tokens

    @property
    def is_recovering(self) -> bool:
        """Whether its ranks have failed and new ones are not there yet."""
        return self._is_recovering

    def has(self, request_id: str) -> bool:
        """Whether the request is in progress here."""
        return request_id in self._accepted

    def list_requests(self) -> list[Request]:
        """Requests in progress."""
        return self._accepted.list_requests()

    def launch(self) -> None:
        """Begin to start; :meth:`wait_started` tells the result."""
        self._thread.start()

    def wait_started(self) -> ExecutorInfo:
        """Wait for the executor. Raises what its start raised."""
        return self._started.result()

    def submit(self, stream: RequestStream, *, has_waited: bool = False) -> None:
        """Accept one request, whose length and id the door has checked; ``has_waited``: it was
        held to the admission limit before.

        Raises:
            QueueFullError: the admission limit is reached.
        """
        with self._wake:
            self.scheduler.admit(stream.request, has_waited=has_waited)
        self._accepted.enter(stream)
        self._post(lambda: self._add(stream))
        if not self._thread.is_alive():  # its loop has failed meanwhile, and takes no commands
            self._accepted.end(stream.request.request_id, FinishReason.ERROR, self.failure)

    def adopt(self, left: Handover) -> None:
        """Take over what replicas that were stopped have left."""
        for stream in left.streams.values():
            self._load.enter(stream.request)
            self._accepted.enter(stream)
        self._post(lambda: self._adopt(left.sequences))
        if not self._thread.is_alive():  # its loop has failed meanwhile, and takes no commands
            for request_id in left.streams:
                self._accepted.end(request_id, FinishReason.ERROR, self.failure)

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request at the next step boundary; unknown ids are ignored."""
        self._post(lambda: self._abort(request_id, reason))

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

    def set_hot(self, settings: Settings) -> int:
        """Obey new hot settings from the next step on, whose number is returned (loop thread)."""
        self._settings = settings
        self.scheduler.set_hot(caps=settings.caps, chooser=self._chooser(), order=settings.order)
        return self.scheduler.next_step_id

    def stop(self) -> Handover:
        """Finish the steps in flight, end the ranks, and hand over all unfinished sequences."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()
        if self._started.exception() is not None:
            return Handover()
        self._run_commands()  # posted between the last step and the end of the thread
        streams = self._accepted.take_streams()
        sequences = [s for s in self.scheduler.release() if s.request_id in streams]
        self._load.clear()
        return Handover(sequences=sequences, streams=streams)

    # -- the loop thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._start_ranks(self._first_step_id)
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            while not self._is_stopping:
                if not self._turn():
                    self._wait_for_work()
            self._finish_in_flight()
        except BaseException as error:  # a bug of ours must not leave callers waiting for ever
            self._give_up(f"the step loop failed: {error!r}")
            raise
        finally:
            self._executor.close()
            if self.failure is not None:
                # Handed over while the loop gave up and its ranks were ended.
                self._run_commands()

    def _turn(self) -> bool:
        """Submit to idle ranks, hand out the last step's tokens, queue a step, collect the oldest.

        False when there was nothing to do. With overlap off, a step's outputs are handed out before
        the next step is scheduled, and no step is scheduled while one runs.
        """
        self._take_commands()
        try:
            self._loop.fill()
            self._say()
            if not self._loop.is_busy:
                return False
            if self._config.overlap and not self._loop.wait_for_end():
                self._take_commands()
                self._loop.queue_next()
            self._take_in(self._loop.collect())
        except RankError as error:
            self._recover(error)
        return True

    def _take_in(self, finished: FinishedStep) -> None:
        self._recovery.note_progress()
        self._loop.patience = 1.0
        self._unsaid = finished
        if not self._config.overlap:
            self._say()

    def _say(self) -> None:
        """Hand the tokens of the last committed step to their callers."""
        finished, self._unsaid = self._unsaid, None
        if finished is None:
            return
        made = self._emitter.make(finished)
        for stream, output in made:
            if output.finish_reason is not None:
                # The scheduler knows every end but one by a stop string. A later request of that
                # id comes after.
                self.scheduler.abort(stream.request.request_id)
                self._accepted.forget(stream, output.finish_reason)
        for stream in self._emitter.hand_out(made):
            if self._accepted.has(stream.request):
                self.scheduler.abort(stream.request.request_id)
                self._accepted.forget(stream, FinishReason.ABORT)

    def _take_commands(self) -> None:
        """Run what other threads asked for, and end requests whose deadline has passed."""
        self._run_commands()
        for request_id in self._accepted.pop_expired(time.monotonic()):
            self.scheduler.abort(request_id)
            self._accepted.end(request_id, FinishReason.DEADLINE, "its deadline passed")

    # -- commands ------------------------------------------------------------------------------

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _wait_for_work(self) -> None:
        """Sleep until a command comes, looking after the ranks meanwhile."""
        while True:
            with self._wake:
                if self._commands or self._is_stopping or self._wake.wait(IDLE_POLL_S):
                    return
            if not self.scheduler.is_idle:  # nothing could run; look again now and then
                return
            if self.failure is None:
                try:
                    self._executor.check()
                except RankError as error:
                    self._recover(error)

    def _add(self, stream: RequestStream) -> None:
        request = stream.request
        self.telemetry.prompt_tokens += len(request.prompt_ids)
        if self.failure is not None:
            self._accepted.end(request.request_id, FinishReason.ERROR, self.failure)
        if not self._arrives(request):
            return
        try:
            with self._wake:  # nobody may count it twice or not at all on its way
                self.scheduler.add(request, is_in_book=True)
        except EngineError as error:
            self._load.turn_away(request)
            self._accepted.end(request.request_id, FinishReason.ERROR, str(error))

    def _adopt(self, sequences: list[Sequence]) -> None:
        if self.failure is not None:
            for sequence in sequences:
                self._accepted.end(sequence.request_id, FinishReason.ERROR, self.failure)
        arrived = [sequence for sequence in sequences if self._arrives(sequence.request)]
        with self._wake:
            self.scheduler.adopt(arrived, is_in_book=True)

    def _arrives(self, request: Request) -> bool:
        """Whether the request goes on to the scheduler; one that ended on its way is struck off."""
        if not self._accepted.has(request):
            self._load.turn_away(request)
            return False
        return True

    def _abort(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._accepted:
            self.scheduler.abort(request_id)
            self._accepted.end(request_id, reason)

    # -- start, end and failure ----------------------------------------------------------------

    def _start_ranks(self, first_step_id: int) -> Scheduler:
        """Start an executor and make what works on it; returns its scheduler, which is empty."""
        self._executor = self._make_executor()
        try:
            info = self._executor.start()
            # Not when ranks are replaced: requests wait then.
            is_first = not self._started.done()
            if self.mode_table is None and is_first and self._times_modes:
                self.mode_table = mode_table_for(
                    self._executor, info, self._config, self._model, self._plan
                )
        except BaseException:
            self._executor.close()
            raise
        self.scheduler = self._new_scheduler(info)
        self.scheduler.next_step_id = first_step_id
        self._loop = StepLoop(
            self.scheduler,
            self._executor,
            step_timeout_s=self._config.step_timeout_s,
            return_logits=self._config.return_logits,
        )
        self._emitter = StepEmitter(
            self._accepted.streams,
            self.telemetry,
            self.scheduler,
            replica=self.index,
            plan=self._plan,
        )
        if is_first:
            self._started.set_result(info)
        return self.scheduler

    @property
    def _times_modes(self) -> bool:
        return self._plan.shift and self._settings.pin == TABLE

    def _new_scheduler(self, info: ExecutorInfo) -> Scheduler:
        capacity = info.num_kv_blocks * self._config.block_size
        context = self._config.max_model_len or self._model.max_positions
        return Scheduler(
            caps=self._settings.caps,
            envelope=self._config.start_envelope,
            chooser=self._chooser(),
            num_blocks=info.num_kv_blocks,
            block_size=self._config.block_size,
            max_model_len=min(context, capacity),
            depth=info.depth,
            order=self._settings.order,
            eos_token_ids=self._model.eos_token_ids,
            keeps_prefixes=self._config.prefix_cache and self._executor.needs_inputs,
            load=self._load,
        )

    def _chooser(self) -> ModeChooser:
        return ModeChooser.of(
            self._settings, table=self.mode_table, coin_seed=self._config.coin_seed
        )

    def _finish_in_flight(self) -> None:
        """Commit what the ranks are still computing, so that no token is computed twice."""
        self._say()
        while self._loop.is_busy:
            try:
                finished = self._loop.collect()
            except RankError:
                self._loop.forget()
                return
            self._unsaid = finished
            self._say()

    def _recover(self, error: EngineError | OSError) -> None:
        """Replace failed ranks, or give up."""
        self._is_recovering = True
        self._say()
        self._loop.forget()
        self._executor.close()
        try:
            self._recovery.replace_ranks(
                self.scheduler, error, is_stopping=lambda: self._is_stopping
            )
        except RankError as hopeless:
            self._give_up(str(hopeless))
        else:
            self._loop.patience = self._recovery.patience
        self._is_recovering = False

    def _give_up(self, why: str) -> None:
        self.failure = why
        for request_id in list(self._accepted.streams):
            self._accepted.end(request_id, FinishReason.ERROR, why)
        for sequence in self.scheduler.release():
            self._load.turn_away(sequence.request)
