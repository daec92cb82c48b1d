"""Replicas join and leave while others serve; plans follow each other without a gap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.executors.protocol import ExecutorInfo
from engine.executors.simulated import SimulatedExecutor
from engine.policy.document import KnobClass
from engine.policy.knobs import AppliedPolicy, Knob
from engine.spec.config import EngineConfig
from engine.spec.errors import PolicyError, RankError
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.request import FinishReason
from engine.transition.costs import TransitionLimits
from engine.transition.planning import Way
from tests.engine.configs import policy_with, with_settings
from tests.engine.paced import (
    ConstantTimer,
    submit,
)
from tests.waiting import wait_until

AT_ONCE = TransitionLimits(drain_s=0)


def resize(engine: Engine, dp: int, *, drain_s: float = 30.0) -> AppliedPolicy:
    plan = replace(engine.settings.plan, dp=dp)
    limits = TransitionLimits(drain_s=drain_s)
    return engine.apply(policy_with(engine.policy, plan=plan), limits=limits)


def knob(engine: Engine, name: str) -> Knob:
    return next(found for found in engine.capabilities() if found.name == name)


def test_replicas_join_and_leave_while_others_serve(engine: Engine) -> None:
    first = [submit(engine, str(i), tokens=40) for i in range(6)]
    wait_until(lambda: all(c.outputs for c in first))
    applied = resize(engine, 3)
    assert applied.changes == {"plan.dp": KnobClass.DRAIN}
    assert applied.transition is not None
    assert (applied.transition.way, applied.transition.peak_devices) == (Way.ADD, 3)
    assert engine.stats().num_kv_blocks == 3 * 64
    later = [submit(engine, f"later {i}", tokens=40) for i in range(6)]
    wait_until(lambda: all(c.outputs for c in later))
    assert {sample.replica for sample in engine.drain_samples()} == {0, 1, 2}
    applied = resize(engine, 1)
    assert applied.transition is not None
    assert (applied.transition.way, applied.transition.carried) == (Way.REMOVE, 0)
    assert engine.settings.plan == engine.held_plan == ParallelPlan()
    for collector in [*first, *later, submit(engine, "last")]:
        assert collector.wait().reason is FinishReason.LENGTH
    stats = engine.stats()
    assert stats.num_kv_blocks == 64
    assert stats.finished[FinishReason.LENGTH] == 13, "counters outlive their replicas"


def test_what_is_left_at_the_deadline_goes_on_elsewhere(engine: Engine) -> None:
    resize(engine, 2)
    collectors = [submit(engine, str(i), tokens=300) for i in range(6)]
    wait_until(lambda: all(c.outputs for c in collectors))
    applied = resize(engine, 1, drain_s=0)
    assert applied.transition is not None
    assert applied.transition.carried == 3
    for i in range(4):
        engine.abort(str(i))
    assert {c.wait().reason for c in collectors[:4]} == {FinishReason.ABORT}
    for collector in collectors[4:]:  # one of them was carried over, the other was not
        assert collector.wait().reason is FinishReason.LENGTH
        assert len(collector.token_ids) == 300


def test_the_price_is_an_estimate_until_it_was_paid(engine: Engine) -> None:
    before = {price.way: price for price in knob(engine, "plan.dp").ways}
    assert not before[Way.ADD].is_measured
    assert (before[Way.REMOVE].start_s, before[Way.REMOVE].drain_s) == (0, 30)
    policy = policy_with(engine.policy, plan=ParallelPlan(dp=2))
    seen = engine.preview(policy)
    assert seen is not None
    assert (seen.transition.way, seen.price.is_measured) == (Way.ADD, False)
    assert engine.preview(policy_with(engine.policy, threshold_tokens=1)) is None
    applied = engine.apply(policy)
    after = knob(engine, "plan.dp")
    assert (after.current, after.minimum, after.maximum) == (2, 1, 8)
    assert after.measured_cost_s == applied.seconds
    (added,) = [price for price in after.ways if price.way is Way.ADD]
    assert applied.transition is not None
    assert (added.is_measured, added.start_s) == (True, applied.transition.start_s)


class Held(SimulatedExecutor):
    """Ranks that start when they may, or not at all."""

    may_start = threading.Event()
    num_good = 99

    def start(self) -> ExecutorInfo:
        assert Held.may_start.wait(20), "nobody let them start"
        Held.num_good -= 1
        if Held.num_good < 0:
            raise RankError("rank 0 was killed by SIGKILL")
        return super().start()


@pytest.fixture
def held_config(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    Held.may_start.set()
    Held.num_good = 99
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", Held)
    return config


@pytest.fixture
def held_engine(held_config: EngineConfig) -> Iterator[Engine]:
    with Engine(held_config, timer_factory=ConstantTimer) as running:
        yield running
        Held.may_start.set()


@pytest.mark.parametrize("plan", [ParallelPlan(dp=2), ParallelPlan(tp=2)])
def test_requests_are_served_while_ranks_start_and_after_these_have_failed(
    held_engine: Engine, plan: ParallelPlan
) -> None:
    engine, before = held_engine, held_engine.policy
    long = submit(engine, "long", tokens=120)
    wait_until(lambda: long.outputs)
    Held.may_start.clear()
    Held.num_good = 0
    errors: list[BaseException] = []

    def apply() -> None:
        try:
            engine.apply(policy_with(before, plan=plan))
        except RankError as error:
            errors.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    time.sleep(0.02)
    assert submit(engine, "meanwhile").wait().reason is FinishReason.LENGTH
    Held.may_start.set()
    thread.join(20)
    assert [str(error) for error in errors] == ["rank 0 was killed by SIGKILL"]
    assert (engine.policy, engine.held_plan) == (before, before.settings.plan)
    assert engine.stats().is_healthy
    assert engine.stats().num_kv_blocks == 64
    assert submit(engine, "after").wait().reason is FinishReason.LENGTH
    assert len(long.wait().token_ids) == 120
    Held.num_good = 99
    engine.apply(policy_with(before, plan=plan))
    assert submit(engine, "then").wait().reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("old", "new", "max_devices", "way", "drain_s"),
    [
        ("tp=2", "sp=2", 4, Way.BLUE_GREEN, 20.0),
        ("tp=2", "sp=2", 4, Way.BLUE_GREEN, 0.0),
        ("dp=2,tp=2", "dp=2,sp=2", 4, Way.ROLLING, 20.0),
        ("dp=4", "dp=2,tp=2", 4, Way.ROLLING, 0.0),
        ("tp=2", "dp=2", 2, Way.STOP_AND_CARRY, 20.0),
    ],
)
def test_another_plan_comes_without_a_gap_where_devices_allow(
    config: EngineConfig, old: str, new: str, max_devices: int, way: Way, drain_s: float
) -> None:
    before, after = parse_plan(old).plan, parse_plan(new).plan
    config = replace(with_settings(config, plan=before), max_devices=max_devices)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        collectors = [submit(engine, str(i), tokens=40) for i in range(8)]
        wait_until(lambda: all(c.outputs for c in collectors))
        applied = engine.apply(
            policy_with(engine.policy, plan=after), limits=TransitionLimits(drain_s=drain_s)
        )
        assert applied.changes == {"plan": KnobClass.RESHAPE}
        assert applied.transition is not None
        assert applied.transition.way is way
        assert applied.transition.peak_devices <= max_devices
        collectors.append(submit(engine, "under the new plan"))
        for collector in collectors:
            assert collector.wait().reason is FinishReason.LENGTH
        assert {len(c.token_ids) for c in collectors[:-1]} == {40}
        assert engine.stats().num_kv_blocks == 64 * after.dp
        engine.check_integrity()


@pytest.mark.parametrize("num_good", [0, 1])
def test_a_rolling_reshape_that_fails_half_way_gives_the_old_plan_back(
    held_config: EngineConfig, num_good: int
) -> None:
    plan = ParallelPlan(dp=2, tp=2)
    config = replace(with_settings(held_config, plan=plan), max_devices=4)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        collectors = [submit(engine, str(i), tokens=100) for i in range(6)]
        wait_until(lambda: all(c.outputs for c in collectors))
        Held.num_good = num_good

        def let_them_start_again() -> None:
            wait_until(lambda: Held.num_good < 0)
            Held.num_good = 99

        thread = threading.Thread(target=let_them_start_again)
        thread.start()
        with pytest.raises(RankError, match="SIGKILL"):
            engine.apply(policy_with(engine.policy, plan=ParallelPlan(dp=2, sp=2)), limits=AT_ONCE)
        thread.join(20)
        for collector in collectors:
            assert collector.wait().reason is FinishReason.LENGTH
        stats = engine.stats()
        assert stats.is_healthy
        assert 1 <= engine.settings.plan.dp <= 2
        assert stats.num_kv_blocks == 64 * engine.settings.plan.dp


def test_a_way_back_that_fails_too_says_what_serves(held_config: EngineConfig) -> None:
    plan = ParallelPlan(dp=2, tp=2)
    config = replace(with_settings(held_config, plan=plan), max_devices=4)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        Held.num_good = 0
        with pytest.raises(RankError, match=r"part of the way back .* plan tp=2 serves"):
            engine.apply(policy_with(engine.policy, plan=ParallelPlan(dp=2, sp=2)))
        assert engine.settings.plan == engine.held_plan == ParallelPlan(tp=2)
        assert submit(engine, "a").wait().reason is FinishReason.LENGTH
        Held.num_good = 99
        resize(engine, 2)
        assert engine.stats().is_healthy


def test_an_abort_is_not_lost_while_its_request_leaves(engine: Engine) -> None:
    resize(engine, 2)
    collectors = [submit(engine, str(i), tokens=450) for i in range(4)]
    wait_until(lambda: all(c.outputs for c in collectors))
    thread = threading.Thread(target=resize, args=(engine, 1), kwargs={"drain_s": 20.0})
    thread.start()
    wait_until(lambda: len(engine.mode_tables()) == 1)
    for i in range(4):
        engine.abort(str(i))
    thread.join(20)
    assert not thread.is_alive(), "with nothing to wait for it is over"
    assert {c.wait().reason for c in collectors} == {FinishReason.ABORT}


def test_closing_does_not_wait_for_those_that_leave(config: EngineConfig) -> None:
    config = with_settings(config, plan=ParallelPlan(dp=2))
    engine = Engine(config, timer_factory=ConstantTimer)
    engine.start()
    collectors = [submit(engine, str(i), tokens=120) for i in range(4)]
    wait_until(lambda: all(c.outputs for c in collectors))
    thread = threading.Thread(target=resize, args=(engine, 1), kwargs={"drain_s": 10_000.0})
    thread.start()
    wait_until(lambda: len(engine.mode_tables()) == 1)
    engine.close()
    thread.join(20)
    assert not thread.is_alive()
    assert {c.wait().reason for c in collectors} <= {FinishReason.ABORT, FinishReason.LENGTH}


def test_a_request_that_would_not_fit_keeps_the_plan_in_force_without_a_gap_too(
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
    assert submit(engine, "another", prompt=200, tokens=100).wait().reason is FinishReason.LENGTH
