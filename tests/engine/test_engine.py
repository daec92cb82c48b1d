"""The engine's front door over paced replicas: routing, policies, reshapes, faults, ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import Caps, EngineConfig, ExecutorKind
from engine.engine import Engine
from engine.errors import (
    PlanError,
    PolicyError,
    QueueFullError,
    RankError,
    RequestError,
    StalePolicyError,
)
from engine.executors.protocol import ExecutorInfo
from engine.executors.simulated import SimulatedExecutor
from engine.plan import Mode, ParallelPlan
from engine.policy import KnobClass, Order
from engine.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.steps import StepResult, StepShape
from engine.telemetry import PARTS

STEP_S = 0.002


class ConstantTimer:
    """Every stage of every step takes the same time."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._stages = (STEP_S,) * plan.pp

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return self._stages

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


class Collector:
    """Gathers a request's outputs and tells when it ended."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.is_done = threading.Event()

    def __call__(self, output: RequestOutput) -> None:
        self.outputs.append(output)
        if output.is_finished:
            self.is_done.set()

    def wait(self) -> Collector:
        assert self.is_done.wait(20), "the request never ended"
        return self

    @property
    def reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason

    @property
    def token_ids(self) -> list[int]:
        return [i for output in self.outputs for i in output.token_ids]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "model_type": "llama",
        "num_hidden_layers": 8,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 500,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def config(model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=model_dir,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=64,
        caps=Caps(max_num_seqs=8, max_num_batched_tokens=64),
        max_devices=8,
    )


@pytest.fixture
def engine(config: EngineConfig) -> Iterator[Engine]:
    with Engine(config, timer_factory=ConstantTimer) as running:
        yield running
        running.check_integrity()


def submit(
    engine: Engine,
    name: str,
    *,
    prompt: int = 20,
    tokens: int = 10,
    priority: int = 0,
    within_s: float | None = None,
) -> Collector:
    collector = Collector()
    now_s = time.monotonic()
    request = Request(
        request_id=name,
        prompt_ids=tuple(range(1, prompt + 1)),
        sampling=SamplingParams(max_tokens=tokens),
        arrival_s=now_s,
        priority=priority,
        deadline_s=None if within_s is None else now_s + within_s,
    )
    engine.submit(request, collector)
    return collector


def wait_until(condition: object, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def test_every_request_gets_its_tokens_with_rising_stamps_and_a_reason(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=5 + i) for i in range(12)]
    for i, collector in enumerate(collectors):
        outputs = collector.wait().outputs
        assert len(collector.token_ids) == 5 + i
        assert collector.reason is FinishReason.LENGTH
        stamps = [output.token_s for output in outputs]
        assert stamps == sorted(stamps)
        assert outputs[0].scheduled_s is not None
        assert outputs[0].scheduled_s <= stamps[0]
    stats = engine.stats()
    assert stats.generation_tokens == sum(range(5, 17))
    assert stats.prompt_tokens == 12 * 20
    assert stats.finished[FinishReason.LENGTH] == 12
    assert len(engine.drain_timings()) == 12
    assert len(engine.drain_samples()) == sum(stats.steps.values())


def test_two_replicas_share_the_requests(config: EngineConfig) -> None:
    with Engine(replace(config, plan=ParallelPlan(dp=2)), timer_factory=ConstantTimer) as engine:
        for collector in [submit(engine, str(i)) for i in range(8)]:
            collector.wait()
        assert {sample.replica for sample in engine.drain_samples()} == {0, 1}


def test_pipeline_stages_hold_different_sequences_at_once(config: EngineConfig) -> None:
    plan = ParallelPlan(pp=4)
    with Engine(replace(config, plan=plan), timer_factory=ConstantTimer) as engine:
        started_s = time.monotonic()
        for collector in [submit(engine, str(i), prompt=16, tokens=40) for i in range(8)]:
            collector.wait()
        steps = sum(engine.stats().steps.values())
        # One after the other, each step would pass all four stages alone.
        assert time.monotonic() - started_s < 0.7 * steps * 4 * STEP_S


def test_an_aborted_request_ends_and_frees_its_place(engine: Engine) -> None:
    collector = submit(engine, "a", tokens=400)
    wait_until(lambda: len(collector.outputs) > 3)
    engine.abort("a")
    assert collector.wait().reason is FinishReason.ABORT
    wait_until(lambda: engine.stats().kv_usage == 0.0)
    engine.abort("never seen")


def test_a_request_that_has_not_ended_at_its_deadline_ends_there_with_its_tokens_so_far(
    engine: Engine,
) -> None:
    late = submit(engine, "late", tokens=480, within_s=0.1)
    other = submit(engine, "other", tokens=60, within_s=60)
    assert late.wait().reason is FinishReason.DEADLINE
    assert 0 < len(late.token_ids) < 480
    assert late.outputs[-1].error == "its deadline passed"
    assert len(other.wait().token_ids) == 60
    wait_until(lambda: engine.stats().kv_usage == 0.0)
    assert engine.stats().finished[FinishReason.DEADLINE] == 1


def test_a_deadline_also_ends_a_request_that_still_waits(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64)
    with Engine(replace(config, caps=caps), timer_factory=ConstantTimer) as engine:
        running = submit(engine, "running", tokens=200)
        waiting = submit(engine, "waiting", within_s=0.05)
        assert waiting.wait().reason is FinishReason.DEADLINE
        assert waiting.token_ids == []
        assert len(running.wait().token_ids) == 200
        engine.check_integrity()


def test_under_priority_an_urgent_request_overtakes_those_that_wait(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64)
    with Engine(replace(config, caps=caps), timer_factory=ConstantTimer) as engine:
        engine.apply(replace(engine.policy, order=Order.PRIORITY))
        running = submit(engine, "running", tokens=100)
        wait_until(lambda: running.outputs)
        patient = submit(engine, "patient", priority=5)
        urgent = submit(engine, "urgent", priority=-1)
        assert urgent.wait().outputs[-1].token_s < patient.wait().outputs[0].token_s


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(pp=3)])
def test_what_a_request_gets_is_the_same_with_overlap_off(
    config: EngineConfig, plan: ParallelPlan
) -> None:
    lengths: list[list[int]] = []
    for overlap in (True, False):
        settings = replace(config, plan=plan, overlap=overlap)
        with Engine(settings, timer_factory=ConstantTimer) as engine:
            collectors = [submit(engine, str(i), tokens=5 + 3 * i) for i in range(12)]
            lengths.append([len(c.wait().token_ids) for c in collectors])
            stats = engine.stats()
            engine.check_integrity()
        assert stats.generation_tokens == sum(lengths[-1])
        assert 0 <= stats.bubble_ratio < 1
        assert set(stats.exposed_seconds) == set(PARTS)
    assert lengths[0] == lengths[1] == [5 + 3 * i for i in range(12)]


def test_an_id_in_use_a_foreign_token_and_a_long_prompt_are_refused(engine: Engine) -> None:
    collector = submit(engine, "a", tokens=100)
    with pytest.raises(RequestError, match="'a' is in use"):
        submit(engine, "a")
    with pytest.raises(RequestError, match=r"450 prompt tokens plus max_tokens 100 .* 512"):
        submit(engine, "long", prompt=450, tokens=100)
    foreign = Request(request_id="b", prompt_ids=(3, 500))
    with pytest.raises(RequestError, match="token id 500 is outside the vocabulary of 500"):
        engine.submit(foreign, Collector())
    collector.wait()


def test_the_admission_limit_refuses_more(engine: Engine) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64, max_queue=2)
    engine.apply(replace(engine.policy, caps=caps))
    running = submit(engine, "running", tokens=200)
    wait_until(lambda: running.outputs)
    queued = [submit(engine, name) for name in ("first", "second")]
    with pytest.raises(QueueFullError, match="max_queue is 2"):
        submit(engine, "third")
    for collector in (running, *queued):
        assert collector.wait().reason is FinishReason.LENGTH


def test_a_hot_change_takes_effect_at_the_next_step(config: EngineConfig) -> None:
    plan = ParallelPlan(sp=2, shift=True)
    config = replace(config, plan=plan, threshold_tokens=100)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        collector = submit(engine, "a", tokens=200)
        wait_until(lambda: len(collector.outputs) > 5)
        applied = engine.apply(replace(engine.policy, threshold_tokens=0))
        wait_until(lambda: len(collector.outputs) > 20)
        collector.wait()
        assert applied.changes == {"shift.threshold_tokens": KnobClass.HOT}
        for sample in engine.drain_samples():
            expected = Mode.BASE if sample.step_id >= applied.effective_step else Mode.SHIFT
            assert sample.shape.mode is expected
        assert engine.stats().mode_switches == 1
        assert applied.warnings


def test_a_reshape_under_load_loses_no_request_and_no_token(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=60) for i in range(12)]
    wait_until(lambda: all(c.outputs for c in collectors[:6]))
    for plan in (ParallelPlan(sp=2, shift=True), ParallelPlan(dp=2, pp=2), ParallelPlan()):
        applied = engine.apply(replace(engine.policy, plan=plan))
        assert applied.changes == {"plan": KnobClass.RESHAPE}
        assert engine.policy.plan == plan
        submit(engine, f"late {plan}", tokens=3).wait()
    for collector in collectors:
        assert len(collector.wait().token_ids) == 60
        assert collector.reason is FinishReason.LENGTH
    cost = {knob.name: knob.measured_cost_s for knob in engine.capabilities()}
    assert cost["plan"] is not None


def test_requests_that_arrive_during_a_reshape_wait_and_are_served(engine: Engine) -> None:
    first = submit(engine, "first", tokens=200)
    done = threading.Event()

    def reshape() -> None:
        engine.apply(replace(engine.policy, plan=ParallelPlan(tp=2)))
        done.set()

    thread = threading.Thread(target=reshape)
    thread.start()
    late = []
    while not done.is_set():
        late.append(submit(engine, f"late{len(late)}", prompt=4, tokens=2))
        time.sleep(0.0005)
    thread.join()
    for collector in [first, *late]:
        assert collector.wait().reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ParallelPlan(sp=3), "8 query heads do not divide"),
        (ParallelPlan(dp=16), "needs 16 devices, this engine has 8"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_and_nothing_changes(
    engine: Engine, plan: ParallelPlan, message: str
) -> None:
    before = engine.policy
    collector = submit(engine, "a", tokens=30)
    with pytest.raises(PlanError, match=message):
        engine.apply(replace(before, plan=plan))
    assert engine.policy == before
    assert len(collector.wait().token_ids) == 30


def test_caps_above_the_envelope_are_refused(engine: Engine) -> None:
    with pytest.raises(PolicyError, match="100000 is above the 8192"):
        engine.apply(replace(engine.policy, caps=Caps(max_num_batched_tokens=100_000)))


def test_an_absurd_top_k_is_refused_before_it_reaches_the_loop() -> None:
    with pytest.raises(RequestError, match="top_k=3000000000"):
        SamplingParams(top_k=3_000_000_000)


def test_a_reshape_keeps_what_was_accepted_whatever_the_admission_limit(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=60) for i in range(8)]
    wait_until(lambda: all(collector.outputs for collector in collectors))
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=64, max_queue=1)
    engine.apply(replace(engine.policy, caps=caps))
    engine.apply(replace(engine.policy, plan=ParallelPlan(tp=2)))
    for collector in collectors:
        assert collector.wait().reason is FinishReason.LENGTH


class SlowStart(SimulatedExecutor):
    """Ranks that take a moment to start, or that cannot."""

    is_broken = False

    def start(self) -> ExecutorInfo:
        time.sleep(0.2)
        if SlowStart.is_broken:
            raise RankError("no memory")
        return super().start()


@pytest.fixture
def slow_engine(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    SlowStart.is_broken = False
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", SlowStart)
    with Engine(config, timer_factory=ConstantTimer) as running:
        yield running


def test_an_abort_during_a_reshape_is_not_lost(slow_engine: Engine) -> None:
    collectors = [submit(slow_engine, str(i), tokens=400) for i in range(3)]
    wait_until(lambda: all(collector.outputs for collector in collectors))
    policy = replace(slow_engine.policy, plan=ParallelPlan(tp=2))
    thread = threading.Thread(target=slow_engine.apply, args=(policy,))
    thread.start()
    time.sleep(0.1)
    assert slow_engine.stats().waiting == 3, "carried-over requests are counted while they wait"
    slow_engine.abort("1")
    thread.join()
    assert collectors[1].wait().reason is FinishReason.ABORT
    assert collectors[0].wait().reason is FinishReason.LENGTH


def test_a_reshape_whose_way_back_fails_too_ends_every_request_and_is_unhealthy(
    slow_engine: Engine,
) -> None:
    collector = submit(slow_engine, "a", tokens=400)
    wait_until(lambda: collector.outputs)
    SlowStart.is_broken = True
    with pytest.raises(RankError, match="no memory"):
        slow_engine.apply(replace(slow_engine.policy, plan=ParallelPlan(tp=2)))
    assert collector.wait().reason is FinishReason.ERROR
    assert not slow_engine.stats().is_healthy
    with pytest.raises(RankError, match="so did the way back"):
        submit(slow_engine, "b")


def test_a_change_of_a_policy_that_someone_else_has_replaced_is_refused(engine: Engine) -> None:
    read = engine.policy
    engine.apply(replace(read, threshold_tokens=9, version=1))
    with pytest.raises(StalePolicyError, match="version 0 is not in force any more"):
        engine.apply(replace(read, threshold_tokens=11), expected=read)
    assert engine.policy.threshold_tokens == 9


class FaultyExecutor(SimulatedExecutor):
    """A paced executor whose ranks die at chosen steps; a new one continues the count."""

    deaths: list[int]
    collected = 0

    def collect(self, timeout_s: float | None = None) -> StepResult:
        FaultyExecutor.collected += 1
        if FaultyExecutor.collected in FaultyExecutor.deaths:
            raise RankError("rank 1 died (exit code -9)")
        return super().collect(timeout_s)


def faulty_engine(
    config: EngineConfig, deaths: list[int], monkeypatch: pytest.MonkeyPatch
) -> Engine:
    FaultyExecutor.deaths, FaultyExecutor.collected = deaths, 0
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", FaultyExecutor)
    return Engine(config, timer_factory=ConstantTimer)


def test_ranks_that_die_are_replaced_and_streams_only_pause(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_engine(config, [5, 9, 15], monkeypatch) as engine:
        collectors = [submit(engine, str(i), tokens=20) for i in range(5)]
        for collector in collectors:
            assert len(collector.wait().token_ids) == 20
        stats = engine.stats()
        assert stats.restarts == 3
        assert stats.is_healthy
        engine.check_integrity()


def test_ranks_that_keep_dying_without_progress_make_the_engine_unhealthy(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_engine(config, list(range(3, 100)), monkeypatch) as engine:
        collector = submit(engine, "a", tokens=20)
        assert collector.wait().reason is FinishReason.ERROR
        assert "rank 1 died" in (collector.outputs[-1].error or "")
        assert not engine.stats().is_healthy
        with pytest.raises(RankError, match="unhealthy"):
            submit(engine, "b")
        # The loop still takes commands, so nobody waits for ever.
        engine.apply(replace(engine.policy, threshold_tokens=7))


class HangingExecutor(SimulatedExecutor):
    """A paced executor of which one step never ends."""

    hung_step: int | None = None

    def is_ready(self, timeout_s: float) -> bool:
        if self._hangs():
            time.sleep(timeout_s)
            return False
        return super().is_ready(timeout_s)

    def collect(self, timeout_s: float | None = None) -> StepResult:
        if self._hangs():
            assert timeout_s is not None
            HangingExecutor.hung_step = None
            time.sleep(timeout_s)
            raise RankError(f"no rank answered within {timeout_s:g} s")
        return super().collect(timeout_s)

    def _hangs(self) -> bool:
        return bool(self._running) and self._running[0].step.step_id == HangingExecutor.hung_step


def test_a_step_that_hangs_is_given_up_after_its_deadline_and_its_work_done_again(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    HangingExecutor.hung_step = 12
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", HangingExecutor)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        started_s = time.monotonic()
        collectors = [submit(engine, str(i), tokens=30) for i in range(3)]
        for collector in collectors:
            assert len(collector.wait().token_ids) == 30
        # The timeout of steps of which nothing is known is a minute.
        assert 2 <= time.monotonic() - started_s < 30
        assert engine.stats().restarts == 1
        engine.check_integrity()


class DyingWhileIdle(SimulatedExecutor):
    """Ranks that are found gone when nobody asks them for anything."""

    is_dead = False

    def check(self) -> None:
        if DyingWhileIdle.is_dead:
            DyingWhileIdle.is_dead = False
            raise RankError("rank 0 was killed")


def test_ranks_that_die_while_nothing_runs_are_replaced_before_the_next_request(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", DyingWhileIdle)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        DyingWhileIdle.is_dead = True
        wait_until(lambda: engine.stats().restarts == 1)
        assert len(submit(engine, "a").wait().token_ids) == 10


def test_closing_ends_what_is_left_with_reason_abort(config: EngineConfig) -> None:
    engine = Engine(config, timer_factory=ConstantTimer)
    engine.start()
    collector = submit(engine, "a", tokens=400)
    engine.close()
    assert collector.wait().reason is FinishReason.ABORT
    with pytest.raises(RankError, match="closed"):
        submit(engine, "b")
