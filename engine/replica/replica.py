"""One replica of the model: a scheduler, an executor, and the thread that runs the step loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.executors.protocol import ExecutorInfo
from engine.modes.table import ModeTable
from engine.replica.handover import Handover
from engine.replica.mailbox import Mailbox
from engine.replica.ranks import ExecutorFactory, ReplicaRanks
from engine.replica.recovery import Recovery
from engine.replica.requests import AcceptedRequests
from engine.replica.step_loop import FinishedStep
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.scheduler.load import LoadBook
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.table import Sequence
from engine.spec.config import EngineConfig
from engine.spec.errors import EngineError, RankError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request
from engine.spec.settings import Settings

T = TypeVar("T")
# How soon an idle loop notices that a rank is gone.
IDLE_POLL_S = 0.25


class Replica:
    """Runs one replica's steps on its own thread; other threads only post commands.

    A rank that fails is replaced: ranks restart and sequences go on from their tokens so far.
    Meanwhile they wait, and an abort is answered at once. If that fails too often (see
    ``Recovery``), the replica gives up, ends its requests with an error and is unhealthy. Once it
    is stopped, or ``is_closing`` is set, a start under way ends.
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
        is_closing: threading.Event,
        first_step_id: int = 0,
        mode_table: ModeTable | None = None,
    ) -> None:
        self.index = index
        self.telemetry = telemetry
        self.failure: str | None = None
        self._is_stopping = False
        self._is_ending = lambda: self._is_stopping or is_closing.is_set()
        self._has_overlap = config.overlap
        self._first_step_id = first_step_id
        self._accepted = AcceptedRequests(telemetry)
        self._load = LoadBook()
        self._ranks = ReplicaRanks(
            index=index,
            config=config,
            model=model,
            settings=settings,
            make_executor=make_executor,
            is_ending=self._is_ending,
            mode_table=mode_table,
            accepted=self._accepted,
            load=self._load,
            telemetry=telemetry,
        )
        self._mailbox = Mailbox()
        # Guards where each request is counted: on its way to the scheduler, or there.
        self._counting = threading.Lock()
        self._is_recovering = False
        self._unsaid: FinishedStep | None = None
        self._recovery = Recovery(telemetry, self._ranks.start)
        self._started: Future[ExecutorInfo] = Future()
        self._thread = threading.Thread(target=self._run, name=f"replica-{index}", daemon=True)

    # -- called from other threads -------------------------------------------------------------

    @property
    def plan(self) -> ParallelPlan:
        """What its ranks run: the engine's plan with dp=1."""
        return self._ranks.plan

    @property
    def mode_table(self) -> ModeTable | None:
        """Its measured step times of each mode; None where none were taken."""
        return self._ranks.mode_table

    @property
    def scheduler(self) -> Scheduler:
        """What decides its steps, once it has started."""
        return self._ranks.scheduler

    @property
    def is_empty(self) -> bool:
        """Whether no request is in progress here."""
        return not self._accepted.streams

    @property
    def num_waiting(self) -> int:
        with self._counting:
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

    def submit(self, stream: RequestStream, *, num_let_in: int = 1) -> None:
        """Accept one request, whose length and id the door has checked; ``num_let_in`` as for
        :meth:`Scheduler.admit`.

        Raises:
            QueueFullError: the admission limit is reached.
            RankError: the loop has ended.
        """
        request = stream.request
        with self._counting:
            self.scheduler.admit(request, num_let_in=num_let_in)
        self._accepted.enter(stream)
        if not self._mailbox.post(lambda: self._add(stream)):
            self._load.turn_away(request)
            if self._accepted.withdraw(stream):  # else it was ended with all the others
                raise RankError(f"replica {self.index} has ended: {self.failure or 'closed'}")

    def adopt(self, left: Handover) -> list[RequestStream]:
        """Take over what stopped replicas have left.

        Returns the requests that it cannot take because its loop has ended; the caller ends them.
        """
        for stream in left.streams.values():
            self._load.enter(stream.request)
            self._accepted.enter(stream)
        if self._mailbox.post(lambda: self._adopt(left.sequences)):
            return []
        for stream in left.streams.values():
            self._load.turn_away(stream.request)
        return [stream for stream in left.streams.values() if self._accepted.withdraw(stream)]

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request at the next step boundary, or at once while ranks are replaced; unknown
        ids are ignored.
        """
        self._mailbox.post(lambda: self._abort(request_id, reason))

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

        if not self._mailbox.post(run):
            raise RankError(f"replica {self.index} has ended: {self.failure or 'closed'}")
        return future.result()

    def set_hot(self, settings: Settings) -> int:
        """Obey new hot settings from the next step on, whose number is returned (loop thread)."""
        self._ranks.settings = settings
        self.scheduler.set_hot(
            caps=settings.caps, chooser=self._ranks.chooser(), order=settings.order
        )
        return self.scheduler.next_step_id

    def stop(self) -> Handover:
        """Finish the steps in flight, end the ranks, and hand over all unfinished sequences. A
        start under way ends."""
        self._is_stopping = True
        self._mailbox.wake()
        self._thread.join()
        if self._started.exception() is not None:
            return Handover()
        streams = self._accepted.take_streams()
        sequences = [s for s in self.scheduler.release() if s.request_id in streams]
        self._load.clear()
        return Handover(sequences=sequences, streams=streams)

    # -- the loop thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            info = self._ranks.begin(first_step_id=self._first_step_id)
        except BaseException as error:
            self._mailbox.close()
            self._started.set_exception(error)
            return
        self._started.set_result(info)
        try:
            while not self._is_stopping:
                if not self._turn():
                    self._wait_for_work()
            self._finish_in_flight()
        except BaseException as error:  # a bug of ours must not leave callers waiting for ever
            self._give_up(f"the step loop failed: {error!r}")
            raise
        finally:
            try:
                self._ranks.executor.close()
            finally:
                # Includes what was posted meanwhile; what comes later is refused.
                self._mailbox.close()

    def _turn(self) -> bool:
        """Submit to idle ranks, hand out the last step's tokens, queue a step, collect the oldest.

        False when there was nothing to do. With overlap off, a step's outputs are handed out before
        the next step is scheduled, and no step is scheduled while one runs.
        """
        self._take_commands()
        try:
            self._ranks.loop.fill()
            self._say()
            if not self._ranks.loop.is_busy:
                return False
            if self._has_overlap and not self._ranks.loop.wait_for_end():
                self._take_commands()
                self._ranks.loop.queue_next()
            self._take_in(self._ranks.loop.collect())
        except RankError as error:
            self._recover(error)
        return True

    def _take_in(self, finished: FinishedStep) -> None:
        self._recovery.note_progress()
        self._ranks.loop.patience = 1.0
        self._unsaid = finished
        if not self._has_overlap:
            self._say()

    def _say(self) -> None:
        """Hand the tokens of the last committed step to their callers."""
        finished, self._unsaid = self._unsaid, None
        if finished is None:
            return
        made = self._ranks.emitter.make(finished)
        for stream, output in made:
            if output.finish_reason is not None:
                # The scheduler knows every end but one by a stop string. A later request of that
                # id comes after.
                self.scheduler.abort(stream.request.request_id)
                self._accepted.forget(stream, output.finish_reason)
        for stream in self._ranks.emitter.hand_out(made):
            if self._accepted.has(stream.request):
                self.scheduler.abort(stream.request.request_id)
                self._accepted.forget(stream, FinishReason.ABORT)

    def _take_commands(self) -> None:
        """Run what other threads asked for, and end requests whose deadline has passed."""
        self._mailbox.run()
        for request_id in self._accepted.pop_expired(time.monotonic()):
            self.scheduler.abort(request_id)
            self._accepted.end(request_id, FinishReason.DEADLINE, "its deadline passed")

    # -- commands ------------------------------------------------------------------------------

    def _wait_for_work(self) -> None:
        """Sleep until a command comes, looking after the ranks meanwhile."""
        while True:
            if self._is_stopping or self._mailbox.wait(IDLE_POLL_S):
                return
            if not self.scheduler.is_idle:  # nothing could run; look again now and then
                return
            if self.failure is None:
                try:
                    self._ranks.executor.check()
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
            with self._counting:  # nobody may count it twice or not at all on its way
                self.scheduler.add(request, is_in_book=True)
        except EngineError as error:
            self._load.turn_away(request)
            self._accepted.end(request.request_id, FinishReason.ERROR, str(error))

    def _adopt(self, sequences: list[Sequence]) -> None:
        if self.failure is not None:
            for sequence in sequences:
                self._accepted.end(sequence.request_id, FinishReason.ERROR, self.failure)
        arrived = [sequence for sequence in sequences if self._arrives(sequence.request)]
        with self._counting:
            self.scheduler.adopt(arrived, is_in_book=True)

    def _arrives(self, request: Request) -> bool:
        """Whether the request goes on to the scheduler; forgets one that ended on its way."""
        if not self._accepted.has(request):
            self._load.turn_away(request)
            return False
        return True

    def _abort(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._accepted:
            self.scheduler.abort(request_id)
            self._accepted.end(request_id, reason)

    # -- start, end and failure ----------------------------------------------------------------

    def _finish_in_flight(self) -> None:
        """Commit what the ranks are still computing, so that no token is computed twice."""
        self._say()
        while self._ranks.loop.is_busy:
            try:
                finished = self._ranks.loop.collect()
            except RankError:
                self._ranks.loop.forget()
                return
            self._unsaid = finished
            self._say()

    def _recover(self, error: EngineError | OSError) -> None:
        """Replace failed ranks, or give up. Sequences wait meanwhile; commands do not."""
        self._is_recovering = True
        self._say()
        self._ranks.loop.forget()
        with self._counting:
            self.scheduler.adopt(self.scheduler.release(), is_in_book=True)

        def replace_ranks() -> ExecutorInfo | None:
            self._ranks.executor.close()
            return self._recovery.start_again(error, is_stopping=self._is_ending)

        try:
            info = self._mailbox.run_during(replace_ranks, self._take_commands)
        except RankError as hopeless:
            self._give_up(str(hopeless))
        else:
            if info is not None:
                self._go_on_with(info)
        self._is_recovering = False

    def _go_on_with(self, info: ExecutorInfo) -> None:
        """Let all sequences go on from their tokens so far, on ranks that have just started."""
        former = self.scheduler
        if former.is_idle:
            self._recovery.note_progress()  # nobody is there who could show any
        with self._counting:
            self._ranks.set_to_work(info, first_step_id=former.next_step_id)
            self.scheduler.adopt(former.release(), is_in_book=True)
        self.scheduler.packer.pace.learn_from(former.packer.pace)
        self._ranks.loop.patience = self._recovery.patience

    def _give_up(self, why: str) -> None:
        self.failure = why
        for request_id in list(self._accepted.streams):
            self._accepted.end(request_id, FinishReason.ERROR, why)
        for sequence in self.scheduler.release():
            self._load.turn_away(sequence.request)
