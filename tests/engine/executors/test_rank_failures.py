"""Ranks that die, hang, raise or cannot start end in a clear error and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from engine.executors.process import ProcessExecutor
from engine.executors.ranks import RankProcesses
from engine.models.create import create_model
from engine.spec.config import Collectives, EngineConfig
from engine.spec.errors import CheckpointError, PlanError, RankError
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from tests.contracts.executor import next_step, prompt_step
from tests.engine.rank_pools import RankPools
from tests.processes import wait_gone

PLAN = ParallelPlan(tp=2)
ONE = ParallelPlan()
# Far above what a death takes to be noticed, far below the step timeout.
NOTICED_S = 10.0


@pytest.fixture
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir, dtype=DType.FLOAT64, block_size=4, num_kv_blocks=64
    )


def executor_of(
    config: EngineConfig, pools: RankPools, plan: ParallelPlan = PLAN
) -> ProcessExecutor:
    model = ModelConfig.from_dir(config.model_dir)
    return ProcessExecutor(config, model, plan, ranks=pools.get(plan.world_size))


ON_GLOO_SLOWLY = pytest.mark.parametrize(
    "started",
    [Collectives.SHM, pytest.param(Collectives.GLOO, marks=pytest.mark.slow)],
    indirect=True,
)


@pytest.fixture
def started(
    request: pytest.FixtureRequest, config: EngineConfig, rank_pools: RankPools
) -> Iterator[ProcessExecutor]:
    """Two ranks on shared memory, or the collectives that the test names."""
    collectives = getattr(request, "param", Collectives.SHM)
    executor = executor_of(replace(config, collectives=collectives), rank_pools)
    executor.start()
    yield executor
    executor.close()


@pytest.fixture
def alone(config: EngineConfig, rank_pools: RankPools) -> Iterator[ProcessExecutor]:
    """One rank, for what no peer has a part in: every test here costs its ranks."""
    executor = executor_of(config, rank_pools, ONE)
    executor.start()
    yield executor
    executor.close()


def test_a_rank_works_on_while_the_engine_finishes_what_it_has(alone: ProcessExecutor) -> None:
    """Service managers send SIGTERM to every process, and the engine drains then."""
    os.kill(alone.pids[0], signal.SIGTERM)
    alone.submit(prompt_step(0))
    alone.collect()
    os.kill(alone.pids[0], signal.SIGTERM)
    alone.submit(prompt_step(1))
    alone.collect()


def test_a_rank_that_hangs_passes_the_step_timeout(
    config: EngineConfig, rank_pools: RankPools
) -> None:
    executor = executor_of(replace(config, step_timeout_s=0.5), rank_pools, ONE)
    executor.start()
    pids = executor.pids
    os.kill(pids[0], signal.SIGSTOP)
    executor.submit(prompt_step(7))
    with pytest.raises(RankError, match=r"step 7: no rank answered within 0.5 s"):
        executor.collect()
    executor.close()
    wait_gone(pids)


@ON_GLOO_SLOWLY
def test_a_hung_step_is_over_at_the_deadline_its_caller_sets(started: ProcessExecutor) -> None:
    pids = started.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    started.submit(prompt_step(3))
    assert not started.is_ready(0.0)
    with pytest.raises(RankError, match=r"step 3: no rank answered within 0.05 s"):
        started.collect(0.05)
    with pytest.raises(RankError, match="no rank answered"):
        started.check()
    started.close()  # kills them at once: stopped processes end by nothing else
    wait_gone(pids)


def check_until_noticed(executor: ProcessExecutor) -> None:
    deadline_s = time.monotonic() + NOTICED_S
    while time.monotonic() < deadline_s:
        executor.check()


def test_a_result_that_came_before_the_failure_can_still_be_collected(
    alone: ProcessExecutor,
) -> None:
    alone.submit(prompt_step(0))
    assert alone.is_ready(NOTICED_S)
    os.kill(alone.pids[0], signal.SIGKILL)
    wait_gone([alone.pids[0]])
    with pytest.raises(RankError):
        check_until_noticed(alone)
    assert alone.collect().step_id == 0
    with pytest.raises(RankError):
        alone.collect()
    with pytest.raises(RankError, match="SIGKILL"):
        alone.submit(prompt_step(1))


@ON_GLOO_SLOWLY
def test_a_death_makes_the_steps_in_flight_ready_to_raise(started: ProcessExecutor) -> None:
    os.kill(started.pids[1], signal.SIGSTOP)
    started.submit(prompt_step(0))
    started.submit(next_step(1))
    os.kill(started.pids[1], signal.SIGKILL)
    assert started.is_ready(NOTICED_S)
    with pytest.raises(RankError, match="SIGKILL"):
        started.collect(0.0)


def test_ranks_tell_how_long_they_waited_for_the_host(started: ProcessExecutor) -> None:
    pause_s = 0.02
    started.submit(prompt_step(0))
    first = started.collect()
    time.sleep(pause_s)
    started.submit(next_step(1))
    started.submit(next_step(2))
    second, third = started.collect(), started.collect()
    assert first.idle_s == 0.0
    assert second.idle_s >= pause_s
    assert all(0.0 <= r.input_exposed_s <= r.input_s for r in (first, second, third))


def test_ranks_that_are_not_ready_in_time_are_named(
    config: EngineConfig, rank_pools: RankPools
) -> None:
    executor = executor_of(replace(config, start_timeout_s=0.2), rank_pools, ONE)
    pids = rank_pools.get(1).pids
    os.kill(pids[0], signal.SIGSTOP)
    with pytest.raises(RankError, match=r"ranks \[0\] were not ready in 0.2 s"):
        executor.start()
    wait_gone(pids)


def test_a_broken_checkpoint_is_a_checkpoint_error_without_a_traceback(
    config: EngineConfig, rank_pools: RankPools, tmp_path: Path
) -> None:
    create_model(tmp_path / "model", preset="tiny", seed=2)
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights)
    executor = executor_of(replace(config, model_dir=tmp_path / "model"), rank_pools, ONE)
    with pytest.raises(CheckpointError, match=re.escape("layers.1.mlp.up_proj")) as caught:
        executor.start()
    assert "Traceback" not in str(caught.value)


def test_a_plan_the_model_cannot_run_starts_no_process(config: EngineConfig) -> None:
    model = ModelConfig.from_dir(config.model_dir)
    executor = ProcessExecutor(config, model, ParallelPlan(tp=3))
    with pytest.raises(PlanError, match="8 query heads"):
        executor.start()
    assert executor.pids == []


def test_a_process_that_cannot_begin_is_named_with_its_words() -> None:
    ranks = RankProcesses(1, module="engine.no_such_worker")
    with pytest.raises(RankError, match=r"(?s)rank 0 .*exited with code 1.*no_such_worker"):
        ranks.receive(NOTICED_S)
    ranks.close()


def test_own_ranks_end_with_their_executor(config: EngineConfig) -> None:
    executor = ProcessExecutor(config, ModelConfig.from_dir(config.model_dir), ONE)
    executor.start()
    pids = executor.pids
    assert len(pids) == 1
    executor.close()
    wait_gone(pids)


IN_A_COLLECTIVE = """
import time
import msgspec
from tests.contracts.communicator_worker import Group, Operation, Program
from tests.engine.rank_pools import RankPools, process_world
with process_world(RankPools(), "shm", num_ranks=2, groups=[(0, 1)], timeout_s=60.0) as world:
    group = world.groups[0, 1]
    # Rank 0 now waits in a collective for rank 1, which nobody asks to come.
    message = Program(group=group, operations=[Operation(kind="all_reduce")])
    world.ranks.send(0, msgspec.msgpack.encode(message))
    print(*world.ranks.pids, flush=True)
    time.sleep(60)
"""
COMPUTING_WITH_SPARES = """
import sys
from pathlib import Path
from engine.spec.config import EngineConfig, ModelConfig
from engine.executors.pool import RankPool
from engine.executors.process import ProcessExecutor
from engine.spec.plan import ParallelPlan
from tests.contracts.executor import prompt_step
config = EngineConfig(model_dir=Path(sys.argv[1]), block_size=4, num_kv_blocks=64)
pool = RankPool(num_spares=2)
model = ModelConfig.from_dir(config.model_dir)
executor = ProcessExecutor(config, model, ParallelPlan(tp=2), ranks=pool)
executor.start()
print(*executor.pids, *pool.spare_pids, flush=True)  # the spares have only just begun
step = 0
while True:
    executor.submit(prompt_step(step))
    executor.collect()
    step += 1
"""
STARTING = """
from engine.executors.pool import RankPool
ranks = RankPool().lend(2)
print(*ranks.pids, flush=True)
ranks.receive(60.0)
"""


@pytest.mark.parametrize(
    "sign", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("program", "num_processes"),
    [
        (IN_A_COLLECTIVE, 2),
        (COMPUTING_WITH_SPARES, 4),
        pytest.param(STARTING, 2, marks=pytest.mark.slow),  # as the spares of the others are
    ],
    ids=["in a collective", "computing, with spares that warm up", "starting"],
)
def test_nothing_is_left_when_the_parent_is_killed(
    program: str, num_processes: int, sign: signal.Signals, tiny_model_dir: Path, tmp_path: Path
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_model_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == num_processes
        assert not files_of(pids, tmp_path), "ranks share memory that has a name"
    finally:
        parent.send_signal(sign)
        parent.wait()
        parent.stdout.close()
    wait_gone(pids)
    assert list(tmp_path.iterdir()) == []


def files_of(pids: list[int], temporary: Path) -> set[str]:
    """Files in shared memory or ``temporary`` that the processes have open or mapped."""
    found: set[str] = set()
    for pid in pids:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found |= {line.split(maxsplit=5)[-1] for line in lines}
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.add(os.readlink(fd))
    return {name for name in found if name.startswith(("/dev/shm", str(temporary)))}
