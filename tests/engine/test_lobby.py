"""Requests that no replica has: before the start, and while ranks change from plan to plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.executors.protocol import ExecutorInfo
from engine.executors.simulated import SimulatedExecutor
from engine.policy.document import KnobClass
from engine.spec.config import EngineConfig
from engine.spec.errors import PlanError, PolicyError, QueueFullError, RankError, RequestError
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason
from engine.spec.settings import Caps
from tests.engine.configs import policy_with, with_settings
from tests.engine.paced import (
    ConstantTimer,
    submit,
)
from tests.waiting import wait_until


def test_a_reshape_under_load_loses_no_request_and_no_token(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=60) for i in range(12)]
    wait_until(lambda: all(c.outputs for c in collectors[:6]))
    for plan in (ParallelPlan(sp=2, shift=True), ParallelPlan(dp=2, pp=2), ParallelPlan()):
        applied = engine.apply(policy_with(engine.policy, plan=plan))
        assert applied.changes == {"plan": KnobClass.RESHAPE}
        assert engine.settings.plan == plan
        submit(engine, f"late {plan}", tokens=3).wait()
    for collector in collectors:
        assert len(collector.wait().token_ids) == 60
        assert collector.reason is FinishReason.LENGTH
    cost = {knob.name: knob.measured_cost_s for knob in engine.capabilities()}
    assert cost["plan"] is not None


def test_nobody_is_turned_away_while_another_replica_has_room(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=2, max_num_batched_tokens=64, max_queue=0)
    both = with_settings(config, plan=ParallelPlan(dp=2), caps=caps)
    with Engine(both, timer_factory=ConstantTimer) as engine:
        # One replica has most of the tokens, and the other all of its rows taken.
        running = [submit(engine, "long", tokens=450)]
        running += [submit(engine, f"short {n}", tokens=200) for n in range(2)]
        running.append(submit(engine, "third", tokens=150))
        with pytest.raises(QueueFullError):
            submit(engine, "one too many")
        assert running[-1].wait().reason is FinishReason.LENGTH
        for name in ("long", "short 0", "short 1"):
            engine.abort(name)
        for collector in running:
            collector.wait()
        engine.check_integrity()


def test_requests_that_arrive_during_a_reshape_wait_and_are_served(engine: Engine) -> None:
    first = submit(engine, "first", tokens=200)
    done = threading.Event()

    def reshape() -> None:
        engine.apply(policy_with(engine.policy, plan=ParallelPlan(tp=2)))
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
        engine.apply(policy_with(before, plan=plan))
    assert engine.policy == before
    assert len(collector.wait().token_ids) == 30


def test_a_reshape_keeps_what_was_accepted_whatever_the_admission_limit(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=60) for i in range(8)]
    wait_until(lambda: all(collector.outputs for collector in collectors))
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=64, max_queue=1)
    engine.apply(policy_with(engine.policy, caps=caps))
    engine.apply(policy_with(engine.policy, plan=ParallelPlan(tp=2)))
    for collector in collectors:
        assert collector.wait().reason is FinishReason.LENGTH


class GatedStart(SimulatedExecutor):
    """Ranks that start when the test lets them, or that cannot."""

    is_broken = False
    has_begun = threading.Event()
    may_go_on = threading.Event()

    def start(self) -> ExecutorInfo:
        GatedStart.has_begun.set()
        assert GatedStart.may_go_on.wait(60)
        if GatedStart.is_broken:
            raise RankError("no memory")
        return super().start()


@pytest.fixture
def gated_engine(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    GatedStart.is_broken = False
    GatedStart.may_go_on.set()
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", GatedStart)
    # Two devices: a plan for both of them must wait until the one before has stopped.
    with Engine(replace(config, max_devices=2), timer_factory=ConstantTimer) as running:
        yield running


@contextmanager
def halfway_to_two(engine: Engine) -> Iterator[None]:
    """The engine while the ranks of a plan for two devices start; has changed at the end."""
    GatedStart.has_begun.clear()
    GatedStart.may_go_on.clear()
    policy = policy_with(engine.policy, plan=ParallelPlan(tp=2))
    thread = threading.Thread(target=engine.apply, args=(policy,))
    thread.start()
    try:
        assert GatedStart.has_begun.wait(60)
        yield
    finally:
        GatedStart.may_go_on.set()
        thread.join()


def test_an_abort_during_a_reshape_is_answered_at_once(gated_engine: Engine) -> None:
    collectors = [submit(gated_engine, str(i), tokens=400) for i in range(3)]
    wait_until(lambda: all(collector.outputs for collector in collectors))
    with halfway_to_two(gated_engine):
        waiting = gated_engine.stats().waiting
        assert waiting == 3, "carried-over requests are counted while they wait"
        gated_engine.abort("1")
        assert collectors[1].wait().reason is FinishReason.ABORT
        assert gated_engine.stats().waiting == 2
    assert collectors[0].wait().reason is FinishReason.LENGTH


def test_a_reshape_whose_way_back_fails_too_ends_every_request_and_is_unhealthy(
    gated_engine: Engine,
) -> None:
    collector = submit(gated_engine, "a", tokens=400)
    wait_until(lambda: collector.outputs)
    GatedStart.is_broken = True
    with pytest.raises(RankError, match="no memory"):
        gated_engine.apply(policy_with(gated_engine.policy, plan=ParallelPlan(tp=2)))
    assert collector.wait().reason is FinishReason.ERROR
    assert not gated_engine.stats().is_healthy
    with pytest.raises(RankError, match="so did the way back"):
        submit(gated_engine, "b")


def test_an_id_that_is_carried_over_a_reshape_is_in_use(gated_engine: Engine) -> None:
    first = submit(gated_engine, "a", tokens=300)
    wait_until(lambda: first.outputs)
    with (
        halfway_to_two(gated_engine),
        pytest.raises(RequestError, match="'a' is in use"),
    ):
        submit(gated_engine, "a")
    assert len(first.wait().token_ids) == 300


def test_requests_before_the_start_are_held_in_order_up_to_the_admission_limit(
    config: EngineConfig,
) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64, max_queue=2)
    engine = Engine(with_settings(config, caps=caps), timer_factory=ConstantTimer)
    first, second = submit(engine, "first"), submit(engine, "second")
    assert engine.stats().waiting == 2
    with pytest.raises(QueueFullError, match="2 requests wait, max_queue is 2"):
        submit(engine, "third")
    with pytest.raises(RequestError, match="'first' is in use"):
        submit(engine, "first")
    with engine:
        assert first.wait().reason is FinishReason.LENGTH
        assert second.wait().reason is FinishReason.LENGTH
        assert first.outputs[-1].token_s < second.outputs[-1].token_s


def test_a_held_request_can_be_aborted_and_ends_when_the_engine_closes(
    config: EngineConfig,
) -> None:
    engine = Engine(config, timer_factory=ConstantTimer)
    aborted, left = submit(engine, "a"), submit(engine, "b")
    engine.abort("a")
    assert aborted.wait().reason is FinishReason.ABORT
    assert engine.stats().waiting == 1
    engine.close()
    assert left.wait().reason is FinishReason.ABORT


def test_the_longest_request_is_that_of_the_plan_in_force(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"tp=1": 18, "tp=2": 64}  # blocks of 16 tokens
    monkeypatch.setattr("engine.engine.num_kv_blocks", lambda config, model, plan: room[str(plan)])
    too_long = r"200 prompt tokens plus max_tokens 100 is more than the context of 288; shorten"
    engine = Engine(config, timer_factory=ConstantTimer)
    with pytest.raises(RequestError, match=too_long):
        submit(engine, "before the start", prompt=200, tokens=100)
    assert engine.stats().waiting == 0
    with engine:
        with pytest.raises(RequestError, match=too_long):
            submit(engine, "under tp=1", prompt=200, tokens=100)
        engine.apply(policy_with(engine.policy, plan=ParallelPlan(tp=2)))
        under_tp = submit(engine, "under tp=2", prompt=200, tokens=100)
        assert len(under_tp.wait().token_ids) == 100


def test_a_request_that_would_not_fit_the_next_plan_keeps_the_one_in_force(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = submit(engine, "long", prompt=200, tokens=200)
    wait_until(lambda: collector.outputs)
    before = engine.policy
    room = {"tp=1": 64, "tp=2": 18}  # blocks of 16 tokens
    monkeypatch.setattr("engine.engine.num_kv_blocks", lambda config, model, plan: room[str(plan)])
    with pytest.raises(PolicyError, match=r"plan tp=2: in progress, request long: 200 .* 288"):
        engine.apply(policy_with(before, plan=ParallelPlan(tp=2)))
    assert engine.policy == before
    assert collector.wait().reason is FinishReason.LENGTH
