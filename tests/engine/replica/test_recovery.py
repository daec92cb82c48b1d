"""Ranks that die or hang under an engine, and what becomes of its requests."""

from __future__ import annotations

import time

import pytest

from engine.engine import Engine
from engine.executors.simulated import SimulatedExecutor
from engine.spec.config import EngineConfig
from engine.spec.errors import (
    RankError,
)
from engine.spec.request import FinishReason
from engine.spec.steps import StepResult
from tests.engine.configs import policy_with
from tests.engine.paced import (
    ConstantTimer,
    submit,
)
from tests.waiting import wait_until


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
        engine.apply(policy_with(engine.policy, threshold_tokens=7))


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


def test_ranks_may_die_any_number_of_times_while_nothing_runs(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", DyingWhileIdle)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        for count in range(1, 6):
            DyingWhileIdle.is_dead = True
            wait_until(lambda count=count: engine.stats().restarts == count)
        assert engine.is_healthy
        assert len(submit(engine, "a").wait().token_ids) == 10
