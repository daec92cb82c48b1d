"""The live engine on a virtual clock: its own thread and step loop, steps as long as a timer says.

Nothing waits for real time. Requests arrive while the loop sleeps on the clock, in their order,
and an idle loop jumps to the next arrival.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.fleet
from engine.engine import Engine
from engine.executors.clock import VirtualClock
from engine.executors.protocol import StepTimer
from engine.executors.simulated import SimulatedExecutor
from engine.policy.document import EnginePolicy
from engine.replica.replica import Replica
from engine.scheduler.packing import StepPacker
from engine.scheduler.skipping import QuietRounds, SkippingScheduler, with_more_context
from engine.scheduler.step import PackedRows, ScheduledStep
from engine.scheduler.table import Sequence
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.measurement import Outcome
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Order, Settings
from engine.spec.steps import StepPlan, StepShape
from tests.tuner.worlds import in_python
from tuner.simulation.simulate import Ranks, SimulatedEngine, ranks_of_one
from tuner.simulation.steering import Steering
from tuner.spec.look_ahead import LookAhead
from tuner.workload.workload import Arrival, ClosedLoop, Workload, WorkloadSource

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One scheduled step: its size and mode, and (request, new tokens) of every row, sorted."""

    shape: StepShape
    rows: tuple[tuple[str, int], ...]


@contextmanager
def recorded_decisions() -> Iterator[list[Decision]]:
    """Every step any scheduler schedules inside the block, in order; bulk steps one by one."""
    found: list[Decision] = []
    advance, advance_rounds, shape_of = (
        SkippingScheduler.advance,
        SkippingScheduler.advance_rounds,
        StepPacker.shape,
    )

    def record(packer: StepPacker, packed: PackedRows) -> StepShape:
        shape = shape_of(packer, packed)
        new = dict.fromkeys(packed.decodes.tolist(), 1)
        new |= {chunk.slot: chunk.num_tokens for chunk in packed.chunks}
        sequences = packer._running.table.list_sequences(np.array([*new]))
        names = [sequence.request_id for sequence in sequences]
        rows = tuple(sorted(zip(names, new.values(), strict=True)))
        found.append(Decision(shape=shape, rows=rows))
        return shape

    def record_advance(scheduler: SkippingScheduler, num_steps: int) -> list[Sequence]:
        runs = scheduler.quiet_steps(num_steps)
        shapes = [
            with_more_context(r.shape, n * r.shape.num_seqs) for r in runs for n in range(r.count)
        ]
        table = scheduler.running.table
        left = [
            (s.request_id, int(table.max_len[s.slot] - table.num_tokens[s.slot]))
            for s in table.sequences
            if s is not None
        ]
        for nth, shape in enumerate(shapes):
            rows = tuple(sorted((name, 1) for name, tokens in left if tokens > nth))
            found.append(Decision(shape=shape, rows=rows))
        return advance(scheduler, num_steps)

    def record_rounds(
        scheduler: SkippingScheduler, rounds: QuietRounds, count: int
    ) -> list[ScheduledStep]:
        sequences = scheduler.running.table.sequences
        rows = [
            tuple(sorted((s.request_id, 1) for slot in slots if (s := sequences[slot]) is not None))
            for slots in rounds.groups
        ]
        for nth in range(count):
            for shape, group in zip(rounds.shapes, rows, strict=True):
                more = with_more_context(shape, nth * shape.num_seqs)
                found.append(Decision(shape=more, rows=group))
        return advance_rounds(scheduler, rounds, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepPacker, "shape", record)
        patch.setattr(SkippingScheduler, "advance", record_advance)
        patch.setattr(SkippingScheduler, "advance_rounds", record_rounds)
        yield found


@dataclass(frozen=True, kw_only=True)
class World:
    """What both the engine and the simulator are told. With ``concurrency`` so many clients send
    the arrivals one after the other, each when it has its last answer.
    """

    plan: ParallelPlan
    caps: Caps
    timer: StepTimer
    arrivals: tuple[Arrival, ...]
    threshold_tokens: int
    order: Order
    overlap: bool
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    concurrency: int | None = None


@dataclass(kw_only=True)
class Served:
    """What the engine did: its steps, when each request got its tokens, and who was refused."""

    decisions: list[Decision]
    token_s: dict[str, list[float]]
    refused: set[str] = field(default_factory=set)


class _ArrivalClock(VirtualClock):
    """Delivers what arrives while somebody sleeps, at its time. Used by the loop thread only."""

    def __init__(self, arrivals: tuple[Arrival, ...], send: Callable[[int, Arrival], None]) -> None:
        super().__init__()
        self.is_open = False
        self._left = deque(enumerate(arrivals))
        self._send = send

    def sleep_until(self, when_s: float) -> None:
        while self._left and self._left[0][1].arrival_s <= when_s:
            number, arrival = self._left.popleft()
            super().sleep_until(arrival.arrival_s)
            self._send(number, arrival)
        super().sleep_until(when_s)

    def jump(self) -> bool:
        """Sleep until the next arrival; False when there is none, or the door is shut."""
        if not self._left or not self.is_open:
            return False
        self.sleep_until(self._left[0][1].arrival_s)
        return True


class _VirtualTime:
    """Stands for the ``time`` module in the engine's modules."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.now()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def serve(world: World, model_dir: Path) -> Served:
    """Run the world's arrivals on a live engine, to the end of the last request."""
    token_s: dict[str, list[float]] = {}
    refused: set[str] = set()
    errors: list[str] = []
    left = {str(n) for n in range(len(world.arrivals))}
    is_over = threading.Event()
    first = world.arrivals[: world.concurrency]
    backlog = deque(list(enumerate(world.arrivals))[len(first) :])

    def end(request_id: str) -> None:
        left.discard(request_id)
        if backlog:
            send(*backlog.popleft())
        if not left:
            is_over.set()

    def on_output(output: RequestOutput) -> None:
        if output.error is not None:
            errors.append(output.error)
        token_s[output.request_id] += [output.token_s] * len(output.token_ids)
        if output.is_finished:
            end(output.request_id)

    def send(number: int, arrival: Arrival) -> None:
        name = str(number)
        token_s[name] = []
        try:
            live.submit(_request(name, arrival), on_output)
        except (RequestError, QueueFullError):
            refused.add(name)
            end(name)

    clock = _ArrivalClock(first, send)
    with _virtual_time(clock, world.timer), recorded_decisions() as decisions:
        live = Engine(_config(world, model_dir), timer_factory=lambda plan: world.timer)
        with live:
            live.apply(_policy(world))
            assert is_over.wait(TIMEOUT_S), f"requests {sorted(left)} did not end"
            assert not errors, errors[0]
            live.check_integrity()
    return Served(decisions=decisions, token_s=token_s, refused=refused)


@contextmanager
def _virtual_time(clock: _ArrivalClock, timer: StepTimer) -> Iterator[None]:
    """The engine's modules see ``clock``, an idle loop jumps, and host work takes its time.

    Nothing arrives before the first policy is in force.
    """
    submit, wait_for_work = SimulatedExecutor.submit, Replica._wait_for_work
    set_hot = Replica.set_hot

    def submit_late(executor: SimulatedExecutor, step: StepPlan) -> None:
        clock.sleep_until(clock.now() + timer.host_seconds(step.shape))
        submit(executor, step)

    def jump_or_wait(replica: Replica) -> None:
        if not clock.jump():
            wait_for_work(replica)

    def set_and_open(replica: Replica, settings: Settings) -> int:
        clock.is_open = True
        return set_hot(replica, settings)

    modules = [m for name, m in sys.modules.items() if name.startswith("engine.")]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if getattr(module, "time", None) is time:
                patch.setattr(module, "time", _VirtualTime(clock))
        patch.setattr(engine.fleet, "WallClock", lambda: clock)
        patch.setattr(SimulatedExecutor, "submit", submit_late)
        patch.setattr(Replica, "_wait_for_work", jump_or_wait)
        patch.setattr(Replica, "set_hot", set_and_open)
        yield


def _config(world: World, model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=model_dir,
        envelope=world.caps,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=world.num_kv_blocks,
        block_size=world.block_size,
        max_model_len=world.max_model_len,
        overlap=world.overlap,
        step_timeout_s=1e6,
        settings=_settings(world),
    )


def _policy(world: World) -> EnginePolicy:
    return EnginePolicy(settings=_settings(world), version=1)


def _settings(world: World) -> Settings:
    return Settings(
        plan=world.plan,
        threshold_tokens=world.threshold_tokens,
        caps=world.caps,
        order=world.order,
    )


def _request(name: str, arrival: Arrival) -> Request:
    return Request(
        request_id=name,
        prompt_ids=(1,) * arrival.input_tokens,
        sampling=SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True),
        arrival_s=arrival.arrival_s,
    )


def _simulated_engine(world: World, model_dir: Path) -> SimulatedEngine:
    ranks = Ranks(timer=world.timer, num_kv_blocks=world.num_kv_blocks)
    return SimulatedEngine(
        model=ModelConfig.from_dir(model_dir),
        ranks_of=ranks_of_one(world.plan, ranks),
        block_size=world.block_size,
        max_model_len=world.max_model_len,
        look_ahead=LookAhead.BEFORE_END if world.overlap else LookAhead.NONE,
        envelope=world.caps,
    )


def simulated(world: World, model_dir: Path, steering: Steering | None = None) -> Served:
    """The same world, simulated."""
    source = WorkloadSource(
        spec="test", seed=0, sha256="0" * 64, rows=len(world.arrivals), span_s=1.0
    )
    closed = ClosedLoop(concurrency=world.concurrency) if world.concurrency else None
    with recorded_decisions() as decisions:
        result = in_python(
            _simulated_engine(world, model_dir),
            _settings(world),
            Workload(arrivals=world.arrivals, source=source, closed=closed),
            steering=steering,
        )
    timings = result.measurement.timings
    return Served(
        decisions=decisions,
        token_s={str(n): list(timing.token_s) for n, timing in enumerate(timings)},
        refused={str(n) for n, t in enumerate(timings) if t.outcome is Outcome.ERRORED},
    )
