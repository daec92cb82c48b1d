"""The engine on real ranks: what a caller gets does not depend on plans, reshapes or faults."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.engine import Engine
from engine.replica.telemetry import EngineStats
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import RankError
from engine.spec.model import DType
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings
from engine.transition.costs import TransitionLimits
from engine.transition.planning import Way
from tests.engine.configs import with_settings

Outputs = dict[str, tuple[int, ...]]
NUM_REQUESTS = 10
NUM_TOKENS = 40


def make_requests() -> list[Request]:
    """Prompts of mixed lengths; every third request samples with its own seed."""
    rng = random.Random(3)
    return [
        Request(
            request_id=str(i),
            prompt_ids=tuple(rng.randrange(3, 500) for _ in range(rng.choice((1, 7, 40, 90)))),
            sampling=SamplingParams(
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
                temperature=0.8 if i % 3 == 2 else 0.0,
                top_p=0.9,
                seed=i,
            ),
            arrival_s=time.monotonic(),
        )
        for i in range(NUM_REQUESTS)
    ]


def run(engine: Engine, disturb: Callable[[int], None] = lambda tokens: None) -> Outputs:
    """Serve all requests; ``disturb`` is called with the tokens produced so far."""
    outputs: queue.Queue[RequestOutput] = queue.Queue()
    for request in make_requests():
        engine.submit(request, outputs.put)
    answers: dict[str, list[int]] = {str(i): [] for i in range(NUM_REQUESTS)}
    left, produced = NUM_REQUESTS, 0
    while left:
        output = outputs.get(timeout=60)
        assert output.error is None
        answers[output.request_id] += output.token_ids
        produced += len(output.token_ids)
        if output.is_finished:
            assert output.finish_reason is FinishReason.LENGTH
            left -= 1
        disturb(produced)
    engine.check_integrity()
    return {name: tuple(ids) for name, ids in answers.items()}


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir,
        dtype=DType.FLOAT64,
        num_kv_blocks=16,
        settings=Settings(caps=Caps(max_num_seqs=6, max_num_batched_tokens=48)),
    )


@pytest.fixture(scope="module")
def calm(config: EngineConfig) -> tuple[Outputs, EngineStats]:
    """One rank when nothing happens (with preemptions: the cache is small)."""
    with Engine(config) as engine:
        answers = run(engine)
        stats = engine.stats()
    assert stats.preemptions > 0
    assert len(set(answers.values())) == NUM_REQUESTS
    return answers, stats


@pytest.fixture(scope="module")
def undisturbed(calm: tuple[Outputs, EngineStats]) -> Outputs:
    """What it answers."""
    return calm[0]


def test_what_is_computed_again_after_a_preemption_is_no_hit_of_the_prefix_cache(
    calm: tuple[Outputs, EngineStats],
) -> None:
    _, stats = calm
    assert (
        stats.prefix_queries
        == stats.prompt_tokens
        == sum(len(request.prompt_ids) for request in make_requests())
    )
    assert stats.prefix_hits == 0, "no two prompts have a beginning in common"


@pytest.mark.usefixtures("lasting_ranks")
@pytest.mark.parametrize("switch", ["overlap", "parallel_sampling", "prefix_cache"])
def test_every_mechanism_turned_off_changes_no_output(
    config: EngineConfig, undisturbed: Outputs, switch: str
) -> None:
    off: dict[str, Any] = {switch: False, "coin_seed": 2}
    sharded = with_settings(config, plan=ParallelPlan(sp=2, shift=True))
    with Engine(replace(sharded, **off)) as engine:
        assert run(engine) == undisturbed


@pytest.mark.usefixtures("lasting_ranks")
def test_a_reshape_under_load_changes_no_output_and_loses_no_request(
    config: EngineConfig, undisturbed: Outputs
) -> None:
    reshapes = {
        60: ParallelPlan(sp=2),
        150: ParallelPlan(sp=2, shift=True),
        250: ParallelPlan(dp=2),
    }
    sharded = replace(with_settings(config, plan=ParallelPlan(tp=2)), max_devices=2)
    with Engine(sharded) as engine:

        def disturb(produced: int) -> None:
            due = [at for at in reshapes if produced >= at]
            for at in due:
                plan = reshapes.pop(at)
                wanted = replace(engine.settings, plan=plan, threshold_tokens=4)
                engine.apply(replace(engine.policy, settings=wanted))

        assert run(engine, disturb) == undisturbed
        assert not reshapes
        assert engine.settings.plan == ParallelPlan(dp=2)
        modes = {(sample.plan, sample.shape.mode) for sample in engine.drain_samples()}
        assert {("tp=2", BASE), ("sp=2", BASE), ("sp=2,shift", BASE)} <= modes
        assert ("sp=2,shift", SHIFT) in modes


def test_replicas_that_join_and_leave_under_load_change_no_output(
    config: EngineConfig, undisturbed: Outputs
) -> None:
    sizes = {60: (2, 30.0), 150: (1, 0.0), 200: (2, 30.0), 300: (1, 30.0)}
    ways = []
    with Engine(config) as engine:

        def disturb(produced: int) -> None:
            for at in [at for at in sizes if produced >= at]:
                dp, drain_s = sizes.pop(at)
                wanted = replace(engine.settings, plan=ParallelPlan(dp=dp))
                applied = engine.apply(
                    replace(engine.policy, settings=wanted),
                    limits=TransitionLimits(drain_s=drain_s),
                )
                assert applied.transition is not None
                ways.append(applied.transition.way)

        assert run(engine, disturb) == undisturbed
        assert ways == [Way.ADD, Way.REMOVE] * 2


@pytest.mark.slow
@pytest.mark.parametrize("drain_s", [0.0, 30.0])
def test_another_plan_beside_the_old_one_changes_no_output(
    config: EngineConfig, undisturbed: Outputs, drain_s: float
) -> None:
    plans = {60: ParallelPlan(sp=2), 200: ParallelPlan(tp=2)}
    before = workers()
    with Engine(with_settings(config, plan=ParallelPlan(tp=2))) as engine:

        def disturb(produced: int) -> None:
            for at in [at for at in plans if produced >= at]:
                wanted = replace(engine.settings, plan=plans.pop(at))
                applied = engine.apply(
                    replace(engine.policy, settings=wanted),
                    limits=TransitionLimits(drain_s=drain_s),
                )
                assert applied.transition is not None
                assert applied.transition.way is Way.BLUE_GREEN
                assert len(workers() - before) == 2, "the old ranks' devices are free"

        assert run(engine, disturb) == undisturbed
        assert not plans


@pytest.mark.slow
@pytest.mark.parametrize("plan", [ParallelPlan(dp=2, tp=2), ParallelPlan(sp=2)])
def test_a_rank_killed_while_it_warms_up_leaves_the_old_plan_serving(
    config: EngineConfig, undisturbed: Outputs, plan: ParallelPlan
) -> None:
    before = workers()
    with Engine(with_settings(config, plan=ParallelPlan(tp=2))) as engine:
        serving, policy = workers(), engine.policy
        errors: list[RankError] = []

        def apply() -> None:
            try:
                engine.apply(replace(policy, settings=replace(policy.settings, plan=plan)))
            except RankError as error:
                errors.append(error)

        def kill_one() -> None:
            end_s = time.monotonic() + 60
            while not (fresh := workers() - serving) and time.monotonic() < end_s:
                time.sleep(0.01)
            next(iter(fresh)).kill()

        threads = [threading.Thread(target=target) for target in (kill_one, apply)]

        def disturb(produced: int) -> None:
            if produced == 60:
                for thread in threads:
                    thread.start()

        assert run(engine, disturb) == undisturbed
        for thread in threads:
            thread.join(60)
        assert "was killed by SIGKILL" in str(errors[0])
        assert engine.policy == policy
        assert engine.stats().restarts == 0
        assert workers() - before == serving - before, "what had started has ended"


@pytest.mark.usefixtures("lasting_ranks")
def test_modes_that_flip_at_every_step_change_no_output(
    config: EngineConfig, undisturbed: Outputs
) -> None:
    piped = with_settings(config, plan=ParallelPlan(pp=2, sp=2, shift=True))
    with Engine(replace(piped, coin_seed=1)) as engine:
        assert run(engine) == undisturbed
        assert engine.stats().mode_switches > 10


def workers() -> set[psutil.Process]:
    """Rank processes of this one, other tests' included."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a killed one is not buried yet
            if "engine.rank.worker" in " ".join(child.cmdline()):
                found.add(child)
    return found


def test_a_killed_rank_is_replaced_and_no_request_is_lost(
    config: EngineConfig, undisturbed: Outputs
) -> None:
    before = workers()
    with Engine(with_settings(config, plan=ParallelPlan(tp=2))) as engine:
        ranks = sorted(workers() - before, key=lambda process: process.pid)
        kills = [100]

        def disturb(produced: int) -> None:
            if kills and produced >= kills[0]:
                kills.pop()
                ranks[-1].kill()

        assert run(engine, disturb) == undisturbed
        assert engine.stats().restarts == 1
        assert engine.stats().is_healthy


@pytest.mark.slow
def test_while_a_replica_gets_new_ranks_another_one_serves(config: EngineConfig) -> None:
    before = workers()
    config = replace(config, executor=ExecutorKind.PROCESS)
    with Engine(with_settings(config, plan=ParallelPlan(dp=2))) as engine:
        first = workers() - before
        ranks = sorted(first, key=lambda process: process.pid)
        ranks[0].kill()
        fresh: set[psutil.Process] = set()
        end_s = time.monotonic() + 60
        while not fresh and time.monotonic() < end_s:
            fresh = workers() - before - first
        try:
            for process in fresh:  # it comes no further
                process.suspend()
            outputs: queue.Queue[RequestOutput] = queue.Queue()
            for request in make_requests()[:4]:
                engine.submit(request, outputs.put)
            ended = 0
            while ended < 4:
                output = outputs.get(timeout=30)
                assert output.error is None
                ended += output.is_finished
        finally:
            for process in fresh:
                process.resume()
        assert engine.stats().waiting == 0
