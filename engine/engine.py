"""The engine: one front door over its replicas, and the policy they obey."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from engine.admissible import check_settings, warnings_of
from engine.changeover import Ends, HalfwayError, next_step_id, stop_all
from engine.door import Door
from engine.executors.protocol import ExecutorInfo
from engine.fleet import Fleet, TimerFactory
from engine.generation import Generation, gather
from engine.lobby import end_all
from engine.modes.table import ModeTable
from engine.moves import Moves
from engine.nvml.monitor import DeviceMonitor
from engine.policy.document import EnginePolicy, KnobClass, classify, moves_ranks
from engine.policy.knobs import AppliedPolicy, Knob, list_knobs
from engine.replica.devices import for_replica, held_model, read_inventory, with_device_memory
from engine.replica.replica import Replica
from engine.replica.stream import OnOutput, RequestStream
from engine.replica.telemetry import EngineStats, drain, summarise
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.energy import EnergyCounters
from engine.spec.errors import RankError, StalePolicyError
from engine.spec.held import held_under, settings_on
from engine.spec.inventory import Inventory
from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.request import (
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    check_vocabulary,
)
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepSample
from engine.text.ends import read_served_model
from engine.text.tokenizer import Tokenizer
from engine.transition.costs import DEFAULT_LIMITS, PricedTransition, Took, TransitionLimits
from engine.watched import WatchedDevices


class Engine:
    """Serves one model under one policy. Every method may be called from any thread.

    Use as a context manager, or call :meth:`start` and :meth:`close`. ``timer_factory`` gives the
    step times of a simulated executor for a plan; ``monitor`` watches devices while the engine
    runs, by default its own on CUDA. All :class:`EngineError` kinds surface here unchanged.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        tokenizer: Tokenizer | None = None,
        timer_factory: TimerFactory | None = None,
        monitor: DeviceMonitor | None = None,
    ) -> None:
        self.config = config = with_device_memory(config)
        self.model = held_model(config, read_served_model(config.model_dir))
        self._tokenizer = tokenizer
        self._inventory = read_inventory(config)
        self._policy = EnginePolicy(settings=config.settings)
        self._held_plan = config.settings.plan
        self._check(config.settings)
        self._is_closing = threading.Event()
        self._fleet = Fleet(config, self.model, self._is_closing, timer_factory=timer_factory)
        self._door = Door(max_len=self.max_model_len)
        self._door.admit(config.settings.admission)
        self._devices = WatchedDevices(config, self._inventory, monitor)
        self._is_closed = False
        self._moves = Moves(
            config,
            self.model,
            self._inventory,
            door=self._door,
            fleet=self._fleet,
            is_closing=self._is_closing,
        )
        self._apply_lock = threading.Lock()
        self._cost_s: dict[KnobClass, float] = {}
        self._generate_numbers = itertools.count()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- questions -----------------------------------------------------------------------------

    @property
    def model_dir(self) -> Path:
        return self.config.model_dir

    @property
    def is_healthy(self) -> bool:
        """Whether every replica serves."""
        return self._door.is_healthy

    @property
    def policy(self) -> EnginePolicy:
        """The policy in force."""
        return self._policy

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._policy.settings

    @property
    def held_plan(self) -> ParallelPlan:
        """The plan whose shards ranks hold: the one in force is on its ladder."""
        return self._held_plan

    @property
    def paced_as(self) -> str | None:
        """The hardware that steps are paced as; None if a model runs."""
        return self.config.paced_as

    @property
    def envelope(self) -> Caps:
        """The most that caps may be raised to without a restart."""
        return self.config.start_envelope

    @property
    def inventory(self) -> Inventory:
        """How many ranks, and how much memory, plans may use."""
        return self._inventory

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt plus output) in tokens: context or KV capacity."""
        return self._max_model_len(self._held_plan)

    @property
    def executor_infos(self) -> list[ExecutorInfo]:
        """What each replica's ranks hold (KV blocks, resident bytes)."""
        return list(self._fleet.infos)

    def stats(self) -> EngineStats:
        """Gauges and counters of all replicas, since start."""
        replicas, num_held = self._door.look_in()
        return summarise(
            self._fleet.telemetry,
            running=sum(r.scheduler.num_running for r in replicas),
            waiting=num_held + sum(r.num_waiting for r in replicas),
            kv_usage=max((r.scheduler.kv_usage for r in replicas), default=0.0),
            is_healthy=self.is_healthy,
            policy_version=self._policy.version,
            held=num_held,
            num_kv_blocks=sum(info.num_kv_blocks for info in self._fleet.infos),
            block_size=self.config.block_size,
            devices=self._devices.latest(self._ranks),
            refused=self._door.refused,
            admitted_rps=getattr(self.settings.admission, "rate_rps", None),
        )

    def read_energy(self) -> EnergyCounters:
        """Joules of the ranks' devices so far; empty unless a driver tells of all. Waits for it."""
        return self._devices.read_energy(self._ranks)

    def mode_tables(self) -> list[ModeTable | None]:
        """Each replica's measured step times of each mode; None where none were taken."""
        return [replica.mode_table for replica in self._door.list_replicas()]

    def drain_samples(self) -> list[StepSample]:
        """Step samples since the last call (at most 20,000 per replica are kept)."""
        return [sample for t in self._fleet.telemetry for sample in drain(t.samples)]

    def drain_timings(self) -> list[RequestTiming]:
        """Timings of requests that ended since the last call, on ``time.monotonic``."""
        return [timing for t in self._fleet.telemetry for timing in t.timings.drain()]

    def capabilities(self) -> list[Knob]:
        """Every knob with its class, range, current value and measured cost."""
        plan = self._held_plan
        return list_knobs(
            self.settings,
            self.envelope,
            held=plan,
            max_devices=self._inventory.max_ranks,
            threads_per_rank=for_replica(self.config, plan, first_rank=0).threads_per_rank,
            cost_s=self._cost_s,
            prices=self._moves.prices(plan),
        )

    def check_integrity(self) -> None:
        """Assert on every replica's own thread that KV blocks and slots balance."""
        for replica in self._door.list_replicas():
            replica.call(replica.scheduler.check_integrity)

    # -- commands ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all ranks. Raises CheckpointError, PlanError or RankError, also when closed."""
        with self._apply_lock:
            if self._is_closed or self._fleet.infos:
                state = "closed" if self._is_closed else "running"
                raise RankError(f"the engine cannot start: it is {state}")
            started_s = time.monotonic()
            replicas = self._fleet.launch(settings_on(self._held_plan, self.settings))
            self._moves.costs.first_start_s = time.monotonic() - started_s
            self._door.open(replicas, max_len=self.max_model_len)
            self._devices.start()

    def close(self) -> None:
        """End all ranks, starting ones included; requests in progress end with reason ``abort``."""
        self._is_closing.set()
        with self._apply_lock:
            self._is_closed = True
            replicas, held = self._door.close()
            left = stop_all(replicas)
            self._fleet.close()
            self._devices.stop()
        # Callbacks may call the engine back.
        end_all([*held, *left.streams.values()], FinishReason.ABORT)

    def submit(self, request: Request, on_output: OnOutput) -> None:
        """Accept a request; ``on_output`` is called on a loop thread and must not block.

        Raises:
            RequestError: too long, ids outside the vocabulary, or an id in use.
            OverloadError: more requests come than the policy admits.
            QueueFullError: the admission limit is reached; try again later.
            RankError: the engine is unhealthy.
        """
        self._accept(request, on_output)

    def abort(self, request_id: str, *, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request at the next step boundary; unknown ids do nothing.

        ``reason`` is ``stop`` if the caller makes the text and has found a stop string in it.
        """
        self._door.abort(request_id, reason)

    def apply(
        self,
        policy: EnginePolicy,
        *,
        expected: EnginePolicy | None = None,
        limits: TransitionLimits = DEFAULT_LIMITS,
    ) -> AppliedPolicy:
        """Put ``policy`` in force. Hot knobs change at the next step; another number of replicas,
        or a plan of other shards, starts and ends ranks (see ``Way``) within ``limits``.

        No accepted request is lost: if devices suffice, other replicas serve meanwhile; if not,
        requests wait and go on from their tokens so far. With ``expected``, nothing changes unless
        that policy is still in force.

        Raises:
            PolicyError: outside the envelope, or requests in progress would not fit the plan.
            StalePolicyError: another policy than ``expected`` is in force.
            PlanError: this model or these devices cannot run the plan.
            RankError: ranks failed to start under the plan; the old plan serves on.
        """
        with self._apply_lock:
            if self._is_closed or self._door.failure is not None:
                raise RankError(f"the engine cannot change: {self._door.failure or 'it is closed'}")
            if expected is not None and expected != self._policy:
                raise StalePolicyError(
                    f"policy version {expected.version} is not in force any more: it is "
                    f"{self._policy.version}; read it again"
                )
            self._check(policy.settings)
            changes = classify(self.settings, policy.settings, self.envelope, held=self._held_plan)
            started_s = time.monotonic()
            took = None
            if moves_ranks(changes):
                took = self._move(policy, limits)
                step = next_step_id(self._door.list_replicas())
                is_reshape = KnobClass.RESHAPE in changes.values()
                kind = KnobClass.RESHAPE if is_reshape else KnobClass.DRAIN
            else:
                step, kind = self._set_hot(policy, self._door.list_replicas()), KnobClass.HOT
            seconds = time.monotonic() - started_s
            self._cost_s[kind] = seconds
            return AppliedPolicy(
                policy=policy,
                changes=changes,
                effective_step=step,
                seconds=seconds,
                warnings=warnings_of(
                    policy.settings, held=self._held_plan, tables=self.mode_tables()
                ),
                transition=took,
            )

    def preview(
        self, policy: EnginePolicy, *, limits: TransitionLimits = DEFAULT_LIMITS
    ) -> PricedTransition | None:
        """How ranks would start and end for ``policy``, and at what price; None if none would.

        Raises:
            PolicyError, PlanError: as :meth:`apply` does.
        """
        self._check(policy.settings)
        held = self._held_plan
        if not moves_ranks(classify(self.settings, policy.settings, self.envelope, held=held)):
            return None
        return self._moves.preview(held, held_under(held, policy.settings.plan), limits)

    def generate(
        self,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        *,
        request_id: str | None = None,
    ) -> Generation:
        """Run one request to its end. Logits are kept if the config has ``return_logits``.

        Without a ``request_id`` it gets an id of its own, so that several threads may call at once.

        Raises:
            RequestError: it could never run.
            RankError: it ended with an error.
        """
        outputs: queue.Queue[RequestOutput] = queue.Queue()
        request = Request(
            request_id=request_id or f"generate-{next(self._generate_numbers)}",
            prompt_ids=prompt_ids,
            sampling=sampling,
            arrival_s=time.monotonic(),
        )
        return gather(self._accept(request, outputs.put), outputs)

    # -- accepting -----------------------------------------------------------------------------

    def _accept(self, request: Request, on_output: OnOutput) -> RequestStream:
        check_vocabulary(request, self.model.vocab_size)
        known = self._tokenizer
        text = None if known is None else known.stream(after=request.prompt_ids)
        stream = RequestStream(request, on_output, text)
        self._door.accept(stream, max_queue=self.settings.caps.max_queue)
        return stream

    def _max_model_len(self, plan: ParallelPlan) -> int:
        capacity = num_kv_blocks(self.config, self.model, plan) * self.config.block_size
        return min(self.model.context_tokens(self.config.max_model_len), capacity)

    # -- plans and policies --------------------------------------------------------------------

    def _check(self, settings: Settings) -> None:
        check_settings(settings, config=self.config, model=self.model, inventory=self._inventory)

    def _set_hot(self, policy: EnginePolicy, replicas: Iterable[Replica]) -> int:
        """Put hot settings in force on serving replicas; returns the first step that obeys them."""
        self._policy = policy
        self._door.admit(policy.settings.admission)
        settings = settings_on(self._held_plan, policy.settings)
        steps = [0]
        for replica in replicas:
            try:
                steps.append(replica.call(partial(replica.set_hot, settings)))
            except RankError:  # its loop has ended, so no step there needs the settings
                continue
        return max(steps)

    def _move(self, policy: EnginePolicy, limits: TransitionLimits) -> Took:
        """Start and end replicas until the plan of ``policy`` serves; no request is lost."""
        plan = policy.settings.plan
        held = held_under(self._held_plan, plan)
        ends = Ends(
            old=settings_on(self._held_plan, self.settings),
            new=settings_on(held, policy.settings),
            old_max_len=self.max_model_len,
            new_max_len=self._max_model_len(held),
        )

        def put_in_force(staying: Iterable[Replica]) -> None:
            self._held_plan = held
            self._set_hot(policy, staying)

        try:
            return self._moves.make(ends, limits, put_in_force)
        except HalfwayError as error:
            self._settle(policy if error.is_new else self._policy, error.plan)
            raise

    def _settle(self, policy: EnginePolicy, plan: ParallelPlan) -> None:
        """Say what really runs: ``policy`` with as many replicas as ``plan``."""
        settings = policy.settings
        settings = replace(settings, plan=replace(settings.plan, dp=plan.dp))
        self._policy, self._held_plan = replace(policy, settings=settings), plan
        self._door.admit(settings.admission)

    @property
    def _ranks(self) -> list[int]:
        """The devices in use, or those that will be where none is yet."""
        return self._fleet.ranks or list(range(self._held_plan.world_size))
