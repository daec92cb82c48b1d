"""The engine: one front door over its replicas, and the policy they obey."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from engine.config import Caps, EngineConfig, ModelConfig, num_kv_blocks
from engine.devices import with_device_memory
from engine.errors import (
    EngineError,
    PlanError,
    PolicyError,
    QueueFullError,
    RankError,
    RequestError,
    StalePolicyError,
)
from engine.executors.protocol import ExecutorInfo
from engine.fleet import Fleet, TimerFactory
from engine.knobs import AppliedPolicy, Knob, list_knobs
from engine.measurement import RequestTiming
from engine.mode_table import ModeTable
from engine.output import OnOutput, RequestStream
from engine.plan import ParallelPlan, check_plan
from engine.policy import EnginePolicy, KnobClass, check_envelope, classify
from engine.replica import Replica
from engine.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.sequences import Sequence
from engine.steps import StepSample
from engine.telemetry import EngineStats, drain, summarise
from engine.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One finished output. ``logits`` f8[output tokens, vocabulary] when asked for."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logits: npt.NDArray[np.float64] | None


class Engine:
    """Serves one model under one policy. Every method may be called from any thread.

    Use as a context manager, or call :meth:`start` and :meth:`close`. ``timer_factory`` gives
    the step times of a simulated executor for a plan. All :class:`EngineError` kinds surface
    here unchanged.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        tokenizer: Tokenizer | None = None,
        timer_factory: TimerFactory | None = None,
    ) -> None:
        self.config = config = with_device_memory(config)
        self.model = ModelConfig.from_dir(config.model_dir)
        self._tokenizer = tokenizer
        self._policy = EnginePolicy(
            plan=config.plan,
            threshold_tokens=config.threshold_tokens,
            caps=config.caps,
            mode=config.mode,
        )
        self._check(self._policy)
        self._replicas: list[Replica] = []
        self._fleet = Fleet(config, self.model, timer_factory=timer_factory)
        # Requests that arrive while no replica serves (before start, during a reshape).
        self._held: dict[str, RequestStream] | None = {}
        self._max_held_len = self.max_model_len
        # Requests of stopped replicas, on their way to new ones, and those aborted meanwhile.
        self._num_in_transit = 0
        self._aborted_in_transit: dict[str, FinishReason] = {}
        self._failure: str | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._apply_lock = threading.Lock()
        self._cost_s: dict[KnobClass, float] = {}

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- questions -----------------------------------------------------------------------------

    @property
    def model_dir(self) -> Path:
        return self.config.model_dir

    @property
    def is_healthy(self) -> bool:
        """Whether every replica serves."""
        with self._lock:
            return self._failure is None and all(r.failure is None for r in self._replicas)

    @property
    def policy(self) -> EnginePolicy:
        """The policy in force."""
        return self._policy

    @property
    def envelope(self) -> Caps:
        """The most that caps may be raised to without a restart."""
        return self.config.start_envelope

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt plus output) in tokens: context or KV capacity."""
        return self._max_model_len(self._policy.plan)

    @property
    def executor_infos(self) -> list[ExecutorInfo]:
        """What each replica's ranks hold (KV blocks, resident bytes)."""
        return list(self._fleet.infos)

    def stats(self) -> EngineStats:
        """Gauges and counters of all replicas, since start."""
        with self._lock:
            replicas, held = list(self._replicas), len(self._held or ())
            in_transit = self._num_in_transit
        return summarise(
            self._fleet.telemetry,
            running=sum(r.scheduler.num_running for r in replicas),
            waiting=held + in_transit + sum(r.num_waiting for r in replicas),
            kv_usage=max((r.scheduler.kv_usage for r in replicas), default=0.0),
            is_healthy=self.is_healthy,
            policy_version=self._policy.version,
        )

    def mode_tables(self) -> list[ModeTable | None]:
        """Each replica's measured step times of both modes; None where none were taken."""
        with self._lock:
            return [replica.mode_table for replica in self._replicas]

    def drain_samples(self) -> list[StepSample]:
        """Step samples since the last call (at most 100,000 per replica are kept)."""
        return [sample for t in self._fleet.telemetry for sample in drain(t.samples)]

    def drain_timings(self) -> list[RequestTiming]:
        """Timings of requests that ended since the last call, on ``time.monotonic``."""
        return [timing for t in self._fleet.telemetry for timing in drain(t.timings)]

    def capabilities(self) -> list[Knob]:
        """Every knob with its class, range, current value and measured cost."""
        return list_knobs(
            self._policy,
            self.envelope,
            max_devices=self.config.max_devices,
            cost_s=self._cost_s,
        )

    def check_integrity(self) -> None:
        """Assert on every replica's own thread that KV blocks and slots balance."""
        for replica in self._replicas:
            replica.call(replica.scheduler.check_integrity)

    # -- commands ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all ranks. Raises CheckpointError, PlanError or RankError."""
        self._open(self._fleet.launch(self._policy), [], {})

    def close(self) -> None:
        """End all ranks; requests still in progress end with reason ``abort``."""
        with self._apply_lock:
            self._is_closed = True
            with self._lock:
                replicas, self._replicas = self._replicas, []
                streams, self._held = self._held or {}, None
            for replica in replicas:
                streams |= replica.stop()[1]
            self._fleet.close()
        for stream in streams.values():
            stream.end(FinishReason.ABORT, time.monotonic())

    def submit(self, request: Request, on_output: OnOutput) -> None:
        """Accept a request; ``on_output`` is called on a loop thread and must not block.

        Raises:
            RequestError: too long, ids outside the vocabulary, or an id in use.
            QueueFullError: the admission limit is reached; try again later.
            RankError: the engine is unhealthy.
        """
        self._accept(self._stream(request, on_output))

    def abort(self, request_id: str, *, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request at the next step boundary; unknown ids do nothing.

        ``reason`` is ``stop`` when whoever makes the text found a stop string in it.
        """
        # Posted under the lock, so that it reaches a replica before a reshape empties it.
        with self._lock:
            stream = self._held.pop(request_id, None) if self._held else None
            if self._num_in_transit:
                self._aborted_in_transit[request_id] = reason
            for replica in self._replicas:
                replica.abort(request_id, reason)
        if stream is not None:
            stream.end(reason, time.monotonic())

    def apply(self, policy: EnginePolicy, *, expected: EnginePolicy | None = None) -> AppliedPolicy:
        """Put ``policy`` in force: hot knobs at the next step, a new plan by a reshape.

        A reshape restarts the ranks; accepted requests wait and go on from their tokens so far.
        With ``expected``, nothing is changed unless that policy is still in force.

        Raises:
            PolicyError: outside the envelope, or requests in progress would not fit the plan.
            StalePolicyError: another policy than ``expected`` is in force.
            PlanError: this model or these devices cannot run the plan.
            RankError: ranks failed to start under the plan; the old plan is running again.
        """
        with self._apply_lock:
            if self._is_closed or self._failure is not None:
                raise RankError(f"the engine cannot change: {self._failure or 'it is closed'}")
            if expected is not None and expected != self._policy:
                raise StalePolicyError(
                    f"policy version {expected.version} is not in force any more: it is "
                    f"{self._policy.version}; read it again"
                )
            self._check(policy)
            changes = classify(self._policy, policy, self.envelope)
            started_s = time.monotonic()
            if "plan" in changes:
                step, kind = self._reshape(policy), KnobClass.RESHAPE
            else:
                calls = [r.call(partial(r.set_hot, policy)) for r in self._replicas]
                step, kind = max(calls, default=0), KnobClass.HOT
                self._policy = policy
            seconds = time.monotonic() - started_s
            self._cost_s[kind] = seconds
            return AppliedPolicy(
                policy=policy,
                changes=changes,
                effective_step=step,
                seconds=seconds,
                warnings=self._warnings(policy),
            )

    def generate(
        self, prompt_ids: tuple[int, ...], sampling: SamplingParams, *, request_id: str = "generate"
    ) -> Generation:
        """Run one request to its end. Logits are kept if the config has ``return_logits``.

        Raises:
            RequestError: it could never run.
            RankError: it ended with an error.
        """
        outputs: queue.Queue[RequestOutput] = queue.Queue()
        request = Request(
            request_id=request_id,
            prompt_ids=prompt_ids,
            sampling=sampling,
            arrival_s=time.monotonic(),
        )
        stream = self._stream(request, outputs.put)
        self._accept(stream)
        token_ids: list[int] = []
        text = ""
        while True:
            output = outputs.get()
            token_ids += output.token_ids
            text += output.text
            if output.error is not None:
                raise RankError(output.error)
            if output.finish_reason is not None:
                break
        return Generation(
            token_ids=tuple(token_ids),
            text=text,
            finish_reason=output.finish_reason,
            logits=np.stack(stream.logits) if stream.logits else None,
        )

    def _warnings(self, policy: EnginePolicy) -> list[str]:
        found = [policy.threshold_warning] if policy.threshold_warning else []
        if policy.mode == "table" and policy.plan.shift and not all(self.mode_tables()):
            found.append(
                "no mode table was measured when the ranks started: the threshold "
                f"{policy.threshold_tokens} decides until they start again"
            )
        return found

    # -- accepting -----------------------------------------------------------------------------

    def _stream(self, request: Request, on_output: OnOutput) -> RequestStream:
        wrong = [i for i in request.prompt_ids if not 0 <= i < self.model.vocab_size]
        if wrong:
            raise RequestError(
                f"request {request.request_id}: token id {wrong[0]} is outside the vocabulary of "
                f"{self.model.vocab_size}"
            )
        text = self._tokenizer.stream() if self._tokenizer is not None else None
        return RequestStream(request, on_output, text)

    def _accept(self, stream: RequestStream) -> None:
        request_id = stream.request.request_id
        with self._lock:
            if any(r.has(request_id) for r in self._replicas) or request_id in (self._held or ()):
                raise RequestError(f"request id {request_id!r} is in use")
            if self._held is not None:
                self._check_length(stream.request)
                self._check_queue(len(self._held))
                self._held[request_id] = stream
            else:
                self._route().submit(stream)

    def _route(self) -> Replica:
        """The healthy replica with the fewest tokens to do."""
        healthy = [r for r in self._replicas if r.failure is None]
        if not healthy:
            reasons = {str(r.failure) for r in self._replicas} | {self._failure or ""}
            failures = "; ".join(sorted(reasons - {""}))
            raise RankError(f"the engine is unhealthy: {failures or 'it is closed'}")
        return min(healthy, key=lambda r: r.load_tokens)

    def _max_model_len(self, plan: ParallelPlan) -> int:
        capacity = num_kv_blocks(self.config, self.model, plan) * self.config.block_size
        return min(self.config.max_model_len or self.model.max_positions, capacity)

    def _check_queue(self, num_waiting: int) -> None:
        limit = self._policy.caps.max_queue
        if limit is not None and num_waiting >= limit:
            raise QueueFullError(f"{num_waiting} requests wait, max_queue is {limit}")

    def _check_length(self, request: Request) -> None:
        """Refuse what would not fit before or after the reshape under way."""
        if request.max_len > self._max_held_len:
            raise RequestError(
                f"request {request.request_id}: {len(request.prompt_ids)} prompt tokens plus "
                f"max_tokens {request.sampling.max_tokens} is more than {self._max_held_len}"
            )

    # -- plans and policies --------------------------------------------------------------------

    def _check(self, policy: EnginePolicy) -> None:
        check_plan(policy.plan, self.model)
        limit = self.config.max_devices
        if limit is not None and policy.plan.world_size > limit:
            raise PlanError(
                f"plan {policy.plan} needs {policy.plan.world_size} devices, "
                f"this engine has {limit}"
            )
        num_kv_blocks(self.config, self.model, policy.plan)
        check_envelope(policy, self.envelope)
        _ = policy.chooser

    def _reshape(self, policy: EnginePolicy) -> int:
        """Stop all replicas, start those of the new plan, and carry every sequence over."""
        old = self._policy
        sequences: list[Sequence] = []
        streams: dict[str, RequestStream] = {}
        step_id = 0
        for replica in self._close_door(policy.plan):
            step_id = max(step_id, replica.scheduler.next_step_id)
            more, ways = replica.stop()
            sequences += more
            streams |= ways
        try:
            replicas = self._fleet.launch(policy, first_step_id=step_id)
        except BaseException as error:
            self._fall_back(old, step_id, sequences, streams, error)
            raise
        self._policy = policy
        self._open(replicas, sequences, streams)
        return step_id

    def _fall_back(
        self,
        old: EnginePolicy,
        step_id: int,
        sequences: list[Sequence],
        streams: dict[str, RequestStream],
        error: BaseException,
    ) -> None:
        """Run the old policy again; if that fails too, end every request and say so."""
        try:
            self._open(self._fleet.launch(old, first_step_id=step_id), sequences, streams)
        except BaseException as again:
            with self._lock:
                self._failure = f"a reshape failed ({error}), and so did the way back ({again})"
                streams |= self._held or {}
                self._held, self._num_in_transit = None, 0
            for stream in streams.values():
                stream.end(FinishReason.ERROR, time.monotonic(), self._failure)

    def _close_door(self, next_plan: ParallelPlan) -> list[Replica]:
        """Hold new requests back and take the replicas out of service.

        Raises:
            PolicyError: a request in progress would not fit ``next_plan``; nothing has changed.
        """
        with self._lock:
            self._max_held_len = min(self.max_model_len, self._max_model_len(next_plan))
            for replica in self._replicas:
                for request in replica.list_requests():
                    try:
                        self._check_length(request)
                    except RequestError as error:
                        raise PolicyError(f"plan {next_plan}: in progress, {error}") from error
            self._num_in_transit = sum(len(r.list_requests()) for r in self._replicas)
            replicas, self._replicas = self._replicas, []
            self._held = self._held or {}
        return replicas

    def _open(
        self,
        replicas: list[Replica],
        sequences: list[Sequence],
        streams: dict[str, RequestStream],
    ) -> None:
        """Deal carried-over sequences to the replicas and let held requests in, in order."""
        for index, replica in enumerate(replicas):
            mine = sequences[index :: len(replicas)]
            replica.adopt(mine, {s.request_id: streams[s.request_id] for s in mine})
        with self._lock:
            self._replicas = replicas
            held, self._held, self._num_in_transit = self._held or {}, None, 0
            for request_id, reason in self._aborted_in_transit.items():
                for replica in replicas:
                    replica.abort(request_id, reason)
            self._aborted_in_transit.clear()
            for stream in held.values():
                try:
                    self._route().submit(stream, is_admitted=True)
                except EngineError as error:
                    stream.end(FinishReason.ERROR, time.monotonic(), str(error))
