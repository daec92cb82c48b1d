"""Runs a replica on one process per rank; no torch in this process."""

from __future__ import annotations

import socket
import time
from collections import deque
from dataclasses import asdict

import msgspec

import engine.errors
from engine.config import Collectives, EngineConfig, ModelConfig, num_kv_blocks
from engine.errors import EngineError, RankError
from engine.executors.protocol import ExecutorInfo
from engine.executors.ranks import RankFrame, RankProcesses
from engine.parallel.shm_build import can_use_python_version, find_library
from engine.parallel.shm_layout import Segment
from engine.plan import ParallelPlan, check_plan
from engine.steps import FromRank, RankFailure, RankReady, RankSetup, StepPlan, StepResult

# How long to look for the first cause once something failed: a rank whose peer died may
# speak before the death itself is seen.
DIAGNOSIS_S = 0.1


class ProcessExecutor:
    """Spawned ranks; shared memory or gloo between them on CPU, NCCL on CUDA.

    ``ranks`` lends processes that are already running (as many as the replica has); they are
    then left running by :meth:`close`, ready for the next executor. Without it the executor
    starts its own and ends them. Ranks that failed are ended in any case.
    See ``engine.executors.protocol.Executor``.
    """

    needs_inputs = True

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        plan: ParallelPlan,
        *,
        ranks: RankProcesses | None = None,
    ) -> None:
        assert plan.dp == 1, "an executor runs one replica"
        self._config = config
        self._model = model
        self._plan = plan
        self._ranks = ranks
        self._owns_ranks = ranks is None
        self._segment: Segment | None = None
        self._listener: socket.socket | None = None
        self._pending: deque[int] = deque()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromRank)
        self._failure: str | None = "it has not been started"
        self._is_broken = False
        self.start_seconds = 0.0

    @property
    def backend(self) -> Collectives:
        """What carries the collectives.

        Raises:
            EngineError: the one asked for does not work on this device or processor.
        """
        is_cuda = self._config.device.startswith("cuda")
        has_shm = not is_cuda and (find_library() is not None or can_use_python_version())
        wanted = Collectives(self._config.collectives)
        if wanted is Collectives.AUTO:
            fallback = Collectives.NCCL if is_cuda else Collectives.GLOO
            return Collectives.SHM if has_shm else fallback
        if (wanted is Collectives.NCCL) is not is_cuda:
            raise EngineError(
                f"collectives {wanted.value!r} do not work on device {self._config.device!r}; "
                "use 'auto'"
            )
        if wanted is Collectives.SHM and not has_shm:
            raise EngineError(
                "shared memory needs a C++ compiler on this processor; install one or use 'gloo'"
            )
        return wanted

    @property
    def pids(self) -> list[int]:
        """Process ids by rank; empty when none run."""
        return self._ranks.pids if self._ranks else []

    def start(self) -> ExecutorInfo:
        check_plan(self._plan, self._model)
        started_s = time.monotonic()
        try:
            if self._ranks is None:
                self._owns_ranks = True
                self._ranks = RankProcesses(
                    self._plan.replica_size, send_timeout_s=self._config.step_timeout_s
                )
            self._send_setups(self._ranks)
            self._failure = None
            ready = self._wait_ready(self._ranks, started_s + self._config.start_timeout_s)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - started_s
        return ExecutorInfo(
            num_kv_blocks=num_kv_blocks(self._config, self._model, self._plan),
            weight_bytes=tuple(rank.weight_bytes for rank in ready),
            kv_bytes=tuple(rank.kv_bytes for rank in ready),
            depth=self._plan.pp,
        )

    def submit(self, step: StepPlan) -> None:
        ranks = self._running()
        assert len(self._pending) < self._plan.pp, "more steps in flight than stages"
        if dead := ranks.dead_ranks():
            raise self._failed(ranks.last_words(dead[0]), dead[0])
        payload = self._encoder.encode(step)
        try:
            ranks.send_all(payload)
        except RankError as error:
            raise self._failed(str(error), error.rank) from error
        self._pending.append(step.step_id)

    def collect(self) -> StepResult:
        ranks = self._running()
        if not self._pending:
            raise RankError("no step is in flight; submit one before collecting")
        step_id = self._pending.popleft()
        deadline = time.monotonic() + self._config.step_timeout_s
        while frame := self._receive(ranks, deadline - time.monotonic()):
            match self._decoder.decode(frame.payload):
                case StepResult() as result:
                    assert result.step_id == step_id, "results come in the order of their steps"
                    return result
                case RankFailure() as failure:
                    raise self._reported(ranks, failure)
                case RankReady():
                    continue
        timeout_s = self._config.step_timeout_s
        raise self._failed(f"step {step_id}: no rank answered within {timeout_s:g} s")

    def close(self) -> None:
        self._failure = self._failure or "it has been closed"
        self._pending.clear()
        ranks, self._ranks = self._ranks, None
        if ranks is not None and (self._owns_ranks or self._is_broken):
            ranks.close()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _running(self) -> RankProcesses:
        if self._failure is not None or self._ranks is None:
            raise RankError(f"this executor cannot run steps: {self._failure}")
        return self._ranks

    def _send_setups(self, ranks: RankProcesses) -> None:
        """Tell every rank who it is, with the descriptors it needs."""
        backend = self.backend
        address, fds = self._open_transport(backend)
        for rank in range(self._plan.replica_size):
            setup = self._setup(rank, backend, address)
            ranks.send(rank, self._encoder.encode(setup), fds if self._gets_fds(rank) else ())

    def _gets_fds(self, rank: int) -> bool:
        return self._segment is not None or rank == 0

    def _open_transport(self, backend: Collectives) -> tuple[str, list[int]]:
        """What ``RankSetup.init_method`` says, and the descriptors that go with it."""
        if backend is Collectives.SHM:
            self._segment = Segment.create()
            return str(find_library() or ""), [self._segment.fd]
        # Bound here and handed to rank 0, so that no other program can take the port.
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        return f"tcp://127.0.0.1:{port}", [self._listener.fileno()]

    def _setup(self, rank: int, backend: Collectives, address: str) -> RankSetup:
        config = self._config
        is_cuda = config.device.startswith("cuda")
        return RankSetup(
            model_dir=str(config.model_dir),
            plan=asdict(self._plan),
            rank=rank,
            dtype=str(config.dtype),
            device=device_of(config.device, rank),
            block_size=config.block_size,
            num_kv_blocks=num_kv_blocks(config, self._model, self._plan),
            max_batched_tokens=config.start_envelope.max_num_batched_tokens,
            backend=str(backend),
            init_method=address,
            link=None if config.link is None or is_cuda else asdict(config.link),
            timeout_s=config.step_timeout_s,
        )

    def _wait_ready(self, ranks: RankProcesses, deadline_s: float) -> list[RankReady]:
        ready: dict[int, RankReady] = {}
        while len(ready) < self._plan.replica_size:
            frame = self._receive(ranks, deadline_s - time.monotonic())
            if frame is None:
                missing = sorted(set(range(self._plan.replica_size)) - set(ready))
                timeout_s = self._config.start_timeout_s
                raise self._failed(f"ranks {missing} were not ready in {timeout_s:g} s")
            match self._decoder.decode(frame.payload):
                case RankReady() as message:
                    ready[frame.rank] = message
                case RankFailure() as failure:
                    raise self._reported(ranks, failure)
                case StepResult():  # of an executor that used these processes before
                    continue
        return [ready[rank] for rank in sorted(ready)]

    def _receive(self, ranks: RankProcesses, timeout_s: float) -> RankFrame | None:
        try:
            return ranks.receive(max(0.0, timeout_s))
        except RankError as error:
            raise self._failed(str(error), error.rank) from error

    def _reported(self, ranks: RankProcesses, failure: RankFailure) -> EngineError:
        """The error a rank reported, or the one that made it fail."""
        cause = self._first_cause(ranks, failure)
        if isinstance(cause, RankError):
            return self._failed(str(cause), cause.rank)
        if cause.kind:
            self._failed(cause.detail, cause.rank)
            kind: type[EngineError] = getattr(engine.errors, cause.kind)
            return kind(cause.detail)
        where = "" if cause.step_id is None else f" in step {cause.step_id}"
        words = f"rank {cause.rank} failed{where}; its last words:\n{cause.detail}"
        return self._failed(words, cause.rank)

    def _first_cause(self, ranks: RankProcesses, failure: RankFailure) -> RankFailure | RankError:
        """``failure``, unless it only complains of another rank that is heard or dies meanwhile."""
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
        """Run nothing any more, free ranks that wait for the one that failed; what to raise."""
        self._failure = message
        self._is_broken = True
        if self._segment is not None:
            self._segment.abort(rank or 0)
        return RankError(message, rank=rank)


def device_of(device: str, rank: int) -> str:
    """The device of a rank: ``cuda`` counts up from 0, ``cuda:4`` from 4; else the same for all."""
    kind, _, first = device.partition(":")
    return f"cuda:{int(first or 0) + rank}" if kind == "cuda" else device
