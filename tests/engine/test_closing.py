"""An engine that is closed while ranks start: nobody waits for them, and none is left."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.executors.protocol import ExecutorInfo
from engine.executors.simulated import SimulatedExecutor
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import RankError
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason
from engine.spec.settings import Settings
from engine.transition.costs import TransitionLimits
from tests.engine.hanging_ranks import living_ranks, starts_hang
from tests.engine.paced import (
    ConstantTimer,
    submit,
)
from tests.waiting import wait_until

# Longer than any test may take: whoever waited for a start would be found out.
FOR_EVER_S = 3600.0


@pytest.fixture
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir,
        executor=ExecutorKind.PROCESS,
        num_kv_blocks=64,
        max_devices=2,
        start_timeout_s=FOR_EVER_S,
        settings=Settings(plan=ParallelPlan()),
    )


def test_closing_ends_the_first_start_and_its_ranks(config: EngineConfig) -> None:
    wide = replace(config, settings=Settings(plan=ParallelPlan(tp=2)))
    before = living_ranks()
    with starts_hang() as stopped, ThreadPoolExecutor() as threads:
        engine = Engine(wide)
        start = threads.submit(engine.start)
        wait_until(lambda: len(stopped) == 2)
        engine.close()
        with pytest.raises(RankError, match="ended while it started"):
            start.result()
        assert living_ranks() == before


@pytest.mark.parametrize("plan", [ParallelPlan(dp=2), ParallelPlan(tp=2)])
def test_closing_ends_a_change_of_plan_and_its_ranks_and_every_request(
    config: EngineConfig, plan: ParallelPlan
) -> None:
    """Others serve meanwhile, or all requests wait for the new ranks."""
    before = living_ranks()
    with ThreadPoolExecutor() as threads, Engine(config) as engine:
        running = submit(engine, "long", tokens=900)
        wait_until(lambda: running.outputs)
        with starts_hang() as stopped:
            wanted = replace(engine.policy, settings=replace(engine.settings, plan=plan))
            change = threads.submit(engine.apply, wanted, limits=TransitionLimits(drain_s=0.0))
            wait_until(lambda: stopped)
            engine.close()
            with pytest.raises(RankError, match="ended while it started"):
                change.result()
            assert living_ranks() == before
        # Where others served it may have come to its end before.
        assert running.wait().reason in (FinishReason.ABORT, FinishReason.STOP)


def test_closing_ends_the_start_of_ranks_that_replace_a_failed_one(config: EngineConfig) -> None:
    before = living_ranks()
    with Engine(config) as engine:
        (serving,) = living_ranks() - before
        with starts_hang() as stopped:
            os.kill(serving, signal.SIGKILL)
            wait_until(lambda: stopped)
            engine.close()
            assert living_ranks() == before


def test_closing_does_not_wait_for_paced_ranks_that_take_their_time(
    paced_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, has_begun = SimulatedExecutor.start, threading.Event()

    def begin(executor: SimulatedExecutor) -> ExecutorInfo:
        has_begun.set()
        return start(executor)

    paced = EngineConfig(
        model_dir=paced_model_dir,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=64,
        max_devices=2,
        start_s_of=lambda plan: FOR_EVER_S,
    )
    with (
        ThreadPoolExecutor() as threads,
        Engine(paced, timer_factory=ConstantTimer) as engine,
    ):
        monkeypatch.setattr(SimulatedExecutor, "start", begin)
        wanted = replace(engine.policy, settings=replace(engine.settings, plan=ParallelPlan(dp=2)))
        change = threads.submit(engine.apply, wanted)
        assert has_begun.wait(60)
        assert not change.done()
        engine.close()
        with pytest.raises(RankError, match="ended while it started"):
            change.result()
