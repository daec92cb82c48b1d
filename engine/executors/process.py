"""Runs a replica on one process per rank; no torch in this process."""

from __future__ import annotations

import time
from collections import deque

import msgspec

from engine.executors.meeting import MeetingPlace, collectives_for, may_share_devices
from engine.executors.pool import Condition, GivenRanks, OwnRanks, RankSource
from engine.executors.protocol import ENDED, ExecutorInfo, IsEnding, never_ends
from engine.executors.ranks import RankFrame, RankProcesses
from engine.kernels.cpu_library import build_cpu_library
from engine.parallel.few_rows_library import build_few_rows
from engine.parallel.int8_library import find_int8
from engine.spec import errors
from engine.spec.config import Collectives, EngineConfig, num_kv_blocks
from engine.spec.errors import EngineError, RankError
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.share import RankShare
from engine.spec.steps import StepPlan, StepResult
from engine.wire.messages import FromRank, RankFailure, RankReady, RankSetup

# How long to look for the first cause after a failure: a rank may complain of a dead peer before
# this process notices the death.
DIAGNOSIS_S = 0.1
# How soon a start ends once nobody needs it any more.
ENDING_LOOK_S = 0.1


class ProcessExecutor:
    """Spawned ranks; shared memory or gloo between them on CPU, NCCL on CUDA.

    ``is_ending`` is asked while ranks start: once it says so, the start fails.

    ``ranks`` lends the processes. A pool keeps them across executors and replaces failed ones;
    :meth:`close` leaves given :class:`RankProcesses` running unless one of them failed. Without
    ``ranks`` the executor starts its own processes and ends them. After a failure with gloo or NCCL
    all ranks are ended, because no rank can leave these safely. See
    ``engine.executors.protocol.Executor``.
    """

    needs_inputs = True

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        plan: ParallelPlan,
        *,
        ranks: RankSource | RankProcesses | None = None,
        is_ending: IsEnding = never_ends,
    ) -> None:
        assert plan.dp == 1, "an executor runs one replica"
        self._config = config
        self._model = model
        self._plan = plan
        self._source: RankSource = OwnRanks()
        if ranks is not None:
            self._source = GivenRanks(ranks) if isinstance(ranks, RankProcesses) else ranks
        self._is_ending = is_ending
        self._ranks: RankProcesses | None = None
        self._meeting: MeetingPlace | None = None
        self._pending: deque[int] = deque()
        self._arrived: deque[StepResult] = deque()
        self._error: EngineError | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromRank)
        self._failure: str | None = "it has not been started"
        self._is_broken = False

    @property
    def backend(self) -> Collectives:
        """What carries the collectives. Raises EngineError like :func:`collectives_for`."""
        return collectives_for(self._config)

    @property
    def pids(self) -> list[int]:
        """Process ids by rank; empty when none run."""
        return self._ranks.pids if self._ranks else []

    def start(self) -> ExecutorInfo:
        check_plan(self._plan, self._model)
        if not self._config.device.startswith("cuda"):
            build_cpu_library()
            build_few_rows()
            if self._model.quantisation is not None:
                find_int8()
        deadline_s = time.monotonic() + self._config.start_timeout_s
        try:
            self._raise_if_ending()
            self._meeting = MeetingPlace(self.backend)
            self._ranks = self._source.lend(self._plan.replica_size)
            self._failure = None
            self._send_setups(self._ranks, self._meeting)
            ready = self._wait_ready(self._ranks, deadline_s)
        except BaseException:
            self.close()
            raise
        self._source.replenish()
        return ExecutorInfo(
            num_kv_blocks=num_kv_blocks(self._config, self._model, self._plan),
            weight_bytes=tuple(rank.weight_bytes for rank in ready),
            kv_bytes=tuple(rank.kv_bytes for rank in ready),
            depth=self._plan.pp,
            computes_by=ready[0].computes_by,
        )

    def submit(self, step: StepPlan) -> None:
        ranks = self._running()
        assert len(self._pending) <= self._plan.pp, "one step may wait behind one per stage"
        self._raise_if_dead(ranks)
        payload = self._encoder.encode(step)
        try:
            ranks.send_all(payload)
        except RankError as error:
            raise self._failed(str(error), error.rank) from error
        self._pending.append(step.step_id)

    def is_ready(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self._is_settled:
            left_s = deadline_s - time.monotonic()
            self._take_in(self._running(), left_s)
            if left_s <= 0.0:
                break
        return self._is_settled

    def collect(self, timeout_s: float | None = None) -> StepResult:
        if not self._pending:
            self._running()
            raise RankError("no step is in flight; submit one before collecting")
        limit_s = self._config.step_timeout_s if timeout_s is None else timeout_s
        is_ready = self.is_ready(limit_s)
        step_id = self._pending.popleft()
        if self._arrived:  # also what came before a failure
            result = self._arrived.popleft()
            assert result.step_id == step_id, "results come in the order of their steps"
            return result
        if self._error is not None:
            raise self._error
        assert not is_ready, "a step that is settled has a result or an error"
        raise self._failed(f"step {step_id}: no rank answered within {limit_s:g} s")

    def check(self) -> None:
        ranks = self._running()
        self._raise_if_dead(ranks)
        self._take_in(ranks, 0.0)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._failure = self._failure or "it has been closed"
        self._pending.clear()
        self._arrived.clear()
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            self._source.give_back(ranks, self._condition)
        if self._meeting is not None:
            self._meeting.close()
            self._meeting = None

    @property
    def _condition(self) -> Condition:
        """What has become of the ranks."""
        if not self._is_broken:
            return Condition.WHOLE
        can_heal = self._meeting is not None and self._meeting.can_be_left
        return Condition.HEALABLE if can_heal else Condition.LOST

    @property
    def _is_settled(self) -> bool:
        """Whether the oldest step has a result, or will never have one."""
        return bool(self._arrived) or self._error is not None or not self._pending

    def _running(self) -> RankProcesses:
        """The ranks. Raises RankError when none run, or one has failed before."""
        if self._failure is not None or self._ranks is None:
            raise RankError(f"this executor cannot run steps: {self._failure}")
        return self._ranks

    def _raise_if_dead(self, ranks: RankProcesses) -> None:
        if dead := ranks.dead_ranks():
            raise self._failed(ranks.last_words(dead[0]), dead[0])

    def _send_setups(self, ranks: RankProcesses, meeting: MeetingPlace) -> None:
        """Tell every rank who it is, with the descriptors it needs."""
        for rank in range(self._plan.replica_size):
            payload = self._encoder.encode(self._setup(rank, meeting))
            try:
                ranks.send(rank, payload, meeting.fds_for(rank))
            except RankError as error:
                raise self._failed(str(error), error.rank) from error

    def _setup(self, rank: int, meeting: MeetingPlace) -> RankSetup:
        config = self._config
        is_cuda = config.device.startswith("cuda")
        return RankSetup(
            share=RankShare.of(
                config,
                self._model,
                self._plan,
                rank=rank,
                device=device_of(config, rank),
                has_graphs=meeting.can_be_captured,
            ),
            meeting=meeting.invitation(timeout_s=config.step_timeout_s),
            link=None if is_cuda else config.link,
            num_threads=1 if is_cuda else config.threads_per_rank or 1,
        )

    def _wait_ready(self, ranks: RankProcesses, deadline_s: float) -> list[RankReady]:
        ready: dict[int, RankReady] = {}
        while len(ready) < self._plan.replica_size:
            frame = self._next_of_start(ranks, deadline_s)
            if frame is None:
                missing = sorted(set(range(self._plan.replica_size)) - set(ready))
                timeout_s = self._config.start_timeout_s
                raise self._failed(f"ranks {missing} were not ready in {timeout_s:g} s")
            match self._decoder.decode(frame.payload):
                case RankReady() as message:
                    ready[frame.rank] = message
                case RankFailure() as failure:
                    raise self._reported(ranks, failure)
                case StepResult():
                    raise AssertionError("no step was sent before all ranks were ready")
        return [ready[rank] for rank in sorted(ready)]

    def _next_of_start(self, ranks: RankProcesses, deadline_s: float) -> RankFrame | None:
        """The next message of the starting ranks; None: none came before the deadline."""
        while True:
            self._raise_if_ending()
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                frame = ranks.receive(min(left_s, ENDING_LOOK_S))
            except RankError as error:
                raise self._failed(str(error), error.rank) from error
            if frame is not None or left_s == 0.0:
                return frame

    def _raise_if_ending(self) -> None:
        if self._is_ending():
            raise self._failed(ENDED)

    def _take_in(self, ranks: RankProcesses, timeout_s: float) -> None:
        """Read one message, or find out that a rank is gone; waits ``timeout_s`` at most."""
        try:
            frame = ranks.receive(max(0.0, timeout_s))
        except RankError as error:
            self._failed(str(error), error.rank)
            return
        match self._decoder.decode(frame.payload) if frame is not None else None:
            case StepResult() as result:
                self._arrived.append(result)
            case RankFailure() as failure:
                self._error = self._reported(ranks, failure)
            case RankReady() | None:
                return

    def _reported(self, ranks: RankProcesses, failure: RankFailure) -> EngineError:
        """The error a rank reported, or the one that made it fail."""
        cause = self._first_cause(ranks, failure)
        if isinstance(cause, RankError):
            return self._failed(str(cause), cause.rank)
        if cause.kind:
            self._failed(cause.detail, cause.rank)
            kind: type[EngineError] = getattr(errors, cause.kind)
            return kind(cause.detail)
        where = "" if cause.step_id is None else f" in step {cause.step_id}"
        words = f"rank {cause.rank} failed{where}; its last words:\n{cause.detail}"
        return self._failed(words, cause.rank)

    def _first_cause(self, ranks: RankProcesses, failure: RankFailure) -> RankFailure | RankError:
        """``failure``, or if it only complains of another rank, that rank's failure or death."""
        deadline = time.monotonic() + DIAGNOSIS_S
        complaining = {failure.rank}
        while failure.kind == RankError.__name__ and time.monotonic() < deadline:
            try:
                frame = ranks.receive(DIAGNOSIS_S)
            except RankError as gone:
                if gone.rank not in complaining:
                    return gone
                continue
            message = self._decoder.decode(frame.payload) if frame else None
            if isinstance(message, RankFailure):
                complaining.add(message.rank)
                if message.kind != RankError.__name__:
                    return message
        return failure

    def _failed(self, message: str, rank: int | None = None) -> RankError:
        """Run no more steps and free ranks that wait for the failed one; returns the error to
        raise."""
        self._failure = message
        self._is_broken = True
        if self._meeting is not None:
            self._meeting.abort(rank or 0)
        error = RankError(message, rank=rank)
        self._error = error
        return error


def device_of(config: EngineConfig, rank: int) -> str:
    """The device of a rank: ``cuda`` counts up from 0 and ``cuda:4`` from 4, starting over where
    ranks may share a device; any other device is the same for all.
    """
    kind, _, first = config.device.partition(":")
    if kind != "cuda":
        return config.device
    number = int(first or 0) + rank
    if may_share_devices(config):
        import torch

        number %= max(1, torch.cuda.device_count())
    return f"cuda:{number}"
