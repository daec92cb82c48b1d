"""A pool replaces the ranks that failed, keeps the others, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.executors.pool import Condition, RankPool
from engine.executors.process import ProcessExecutor
from engine.spec.config import Collectives, EngineConfig
from engine.spec.errors import CheckpointError, RankError
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan
from tests.contracts.executor import next_step, prompt_step
from tests.processes import SOON_S, wait_gone
from tests.waiting import wait_until

ONE = ParallelPlan()
TP2 = ParallelPlan(tp=2)
SP2 = ParallelPlan(sp=2, shift=True)
PP2 = ParallelPlan(pp=2)
# No healthy rank needs so long to come out of a step, however busy the machine is.
PATIENCE_S = 30.0
STEPS = (
    prompt_step(0, lens=(5, 3, 9)),
    next_step(1, count=3),
    next_step(2, count=3),
)


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir, dtype=DType.FLOAT64, block_size=4, num_kv_blocks=64
    )


@pytest.fixture
def pool() -> Iterator[RankPool]:
    pool = RankPool(patience_s=PATIENCE_S)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def lasting_pool() -> Iterator[RankPool]:
    """One for all tests that leave it whole: starting ranks takes seconds."""
    pool = RankPool(patience_s=PATIENCE_S)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def impatient_pool() -> Iterator[RankPool]:
    """One that kills a rank which does not come out of its step at once."""
    pool = RankPool(patience_s=0.3)
    yield pool
    pool.close()


def started(config: EngineConfig, pool: RankPool, plan: ParallelPlan = TP2) -> ProcessExecutor:
    model = ModelConfig.from_dir(config.model_dir)
    executor = ProcessExecutor(config, model, plan, ranks=pool)
    executor.start()
    return executor


def outputs(executor: ProcessExecutor) -> list[bytes]:
    """What the steps sample, each collected before the next is submitted."""
    found = []
    for step in STEPS:
        executor.submit(step)
        found.append(executor.collect().token_ids)
    return found


@pytest.fixture(scope="module")
def undisturbed(config: EngineConfig, lasting_pool: RankPool) -> list[bytes]:
    executor = started(config, lasting_pool)
    found = outputs(executor)
    executor.close()
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_gone([pid])


def kill_before_a_step(executor: ProcessExecutor, pid: int) -> None:
    executor.submit(STEPS[0])
    executor.collect()
    kill(pid)
    executor.submit(STEPS[1])
    executor.collect()


def kill_in_a_step(executor: ProcessExecutor, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)  # so that its peers wait for it inside the first of two steps
    executor.submit(STEPS[0])
    executor.submit(STEPS[1])
    os.kill(pid, signal.SIGKILL)
    executor.collect()


def kill_while_idle(executor: ProcessExecutor, pid: int) -> None:
    executor.check()
    kill(pid)
    deadline_s = time.monotonic() + SOON_S
    while time.monotonic() < deadline_s:  # its last thread may outlive its first one by a little
        executor.check()


@pytest.mark.parametrize(
    ("plan", "strike", "rank"),
    [
        (TP2, kill_before_a_step, 0),
        (TP2, kill_in_a_step, 1),
        (TP2, kill_while_idle, 0),
        (SP2, kill_in_a_step, 0),
        pytest.param(PP2, kill_in_a_step, 0, marks=pytest.mark.slow),
        (PP2, kill_in_a_step, 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_killed_rank_is_replaced_and_the_other_keeps_its_process(
    config: EngineConfig,
    lasting_pool: RankPool,
    undisturbed: list[bytes],
    strike: Callable[[ProcessExecutor, int], None],
    rank: int,
    plan: ParallelPlan,
) -> None:
    executor = started(config, lasting_pool, plan)
    pids = executor.pids
    with pytest.raises(RankError, match=rf"rank {rank} \(pid {pids[rank]}\) was killed by SIGKILL"):
        strike(executor, pids[rank])
    executor.close()
    healed = started(config, lasting_pool, plan)
    assert healed.pids[rank] != pids[rank]
    assert healed.pids[1 - rank] == pids[1 - rank]
    assert outputs(healed) == undisturbed
    healed.close()


def test_a_rank_is_replaced_again_and_again_and_the_other_keeps_no_old_memory(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes]
) -> None:
    executor = started(config, lasting_pool)
    survivor = executor.pids[0]
    for _ in range(2):
        with pytest.raises(RankError):
            kill_in_a_step(executor, executor.pids[1])
        executor.close()
        executor = started(config, lasting_pool)
    assert executor.pids[0] == survivor
    assert outputs(executor) == undisturbed
    maps = Path(f"/proc/{survivor}/maps").read_text().splitlines()
    assert sum("gearshift-collectives" in line for line in maps) == 1
    executor.close()


def test_a_stopped_rank_passes_its_deadline_and_is_killed(
    config: EngineConfig, impatient_pool: RankPool, undisturbed: list[bytes]
) -> None:
    executor = started(config, impatient_pool)
    hung = executor.pids[1]
    os.kill(hung, signal.SIGSTOP)
    executor.submit(STEPS[0])
    with pytest.raises(RankError, match=r"step 0: no rank answered within 0.2 s"):
        executor.collect(0.2)
    executor.close()
    healed = started(config, impatient_pool)
    wait_gone([hung])
    assert outputs(healed) == undisturbed
    healed.close()


def test_a_rank_stopped_while_nobody_uses_it_is_replaced_at_the_next_start(
    config: EngineConfig, impatient_pool: RankPool, undisturbed: list[bytes]
) -> None:
    executor = started(config, impatient_pool)
    stopped = executor.pids[0]
    executor.close()
    os.kill(stopped, signal.SIGSTOP)
    healed = started(config, impatient_pool)
    wait_gone([stopped])
    assert outputs(healed) == undisturbed
    healed.close()


def test_ranks_that_raise_exit_and_are_replaced(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes]
) -> None:
    executor = started(config, lasting_pool)
    pids = executor.pids
    wrong = next_step(4)
    wrong.slots = b"odd"
    executor.submit(wrong)
    with pytest.raises(RankError, match=r"(?s)rank \d failed in step 4.*Traceback.*buffer size"):
        executor.collect()
    with pytest.raises(RankError):
        executor.submit(next_step(5))
    executor.close()
    healed = started(config, lasting_pool)
    assert outputs(healed) == undisturbed
    assert not set(healed.pids) & set(pids)
    wait_gone(pids)
    healed.close()


def test_a_checkpoint_that_cannot_be_loaded_costs_no_process(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes], tmp_path: Path
) -> None:
    executor = started(config, lasting_pool)
    pids = executor.pids
    executor.close()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((config.model_dir / "config.json").read_bytes())
    with pytest.raises(CheckpointError):
        started(replace(config, model_dir=folder), lasting_pool)
    healed = started(config, lasting_pool)
    assert healed.pids == pids
    assert outputs(healed) == undisturbed
    healed.close()


def test_all_ranks_are_replaced_where_collectives_cannot_be_left(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes]
) -> None:
    config = replace(config, collectives=Collectives.GLOO)
    executor = started(config, lasting_pool)
    pids = executor.pids
    with pytest.raises(RankError, match=rf"rank 1 \(pid {pids[1]}\) was killed by SIGKILL"):
        kill_in_a_step(executor, pids[1])
    executor.close()
    wait_gone(pids)
    healed = started(config, lasting_pool)
    assert outputs(healed) == undisturbed
    healed.close()


def test_the_next_executor_gets_the_same_processes_under_another_plan_too(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes]
) -> None:
    pids: list[list[int]] = []
    for plan in (TP2, SP2, PP2, TP2):
        executor = started(config, lasting_pool, plan)
        pids.append(executor.pids)
        assert outputs(executor) == undisturbed
        executor.close()
    assert pids == [pids[0]] * 4


def test_answers_to_the_executor_before_are_not_heard(
    config: EngineConfig, lasting_pool: RankPool, undisturbed: list[bytes]
) -> None:
    first = started(config, lasting_pool)
    first.submit(prompt_step(8, lens=(2, 2), mode=BASE))
    first.submit(next_step(9, count=2))
    first.close()
    second = started(config, lasting_pool)
    assert outputs(second) == undisturbed
    second.close()


def test_processes_that_a_smaller_plan_does_not_need_are_ended(pool: RankPool) -> None:
    ranks = pool.lend(2)
    pids = ranks.pids
    pool.give_back(ranks, Condition.WHOLE)
    ranks = pool.lend(1)
    assert ranks.pids == pids[:1]
    wait_gone(pids[1:])
    pool.give_back(ranks, Condition.WHOLE)
    pool.close()
    wait_gone(pids)


def test_a_warm_spare_takes_the_place_and_another_one_is_started(
    config: EngineConfig, undisturbed: list[bytes]
) -> None:
    pool = RankPool(num_spares=1, patience_s=PATIENCE_S)
    executor = started(config, pool, ONE)
    pids = executor.pids
    wait_until(lambda: pool.num_warm_spares == 1)
    (spare,) = pool.spare_pids
    with pytest.raises(RankError):
        kill_while_idle(executor, pids[0])
    executor.close()
    healed = started(config, pool, ONE)
    assert healed.pids == [spare]
    assert outputs(healed) == undisturbed
    (new_spare,) = pool.spare_pids
    assert new_spare not in (spare, *pids)
    healed.close()
    pool.close()
    wait_gone([*pids, spare, new_spare])


@pytest.mark.parametrize(
    "sign", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("is_warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_spare_that_failed_meanwhile_is_not_used(
    config: EngineConfig, undisturbed: list[bytes], sign: signal.Signals, is_warm: bool
) -> None:
    if sign is signal.SIGSTOP and not is_warm:
        pytest.skip("it looks like one that still warms up; the start timeout finds it")
    pool = RankPool(num_spares=1, patience_s=2.0)
    executor = started(config, pool, ONE)
    if is_warm:
        wait_until(lambda: pool.num_warm_spares == 1)
    (spare,) = pool.spare_pids
    os.kill(spare, sign)
    if sign is signal.SIGKILL:
        wait_gone([spare])
    with pytest.raises(RankError):
        kill_while_idle(executor, executor.pids[0])
    executor.close()
    healed = started(config, pool, ONE)
    assert spare not in healed.pids
    wait_gone([spare])
    assert outputs(healed) == undisturbed
    healed.close()
    pool.close()


def test_processes_that_cannot_begin_fail_every_start_and_leave_nothing(
    config: EngineConfig,
) -> None:
    pool = RankPool(module="engine.no_such_worker", num_spares=1)
    for _ in range(3):
        with pytest.raises(RankError, match="no_such_worker"):
            started(config, pool)
    pool.close()
    assert pool.spare_pids == []


def test_ranks_that_work_do_without_a_spare_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = RankPool(num_spares=1)
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-such-python"))
    pool.replenish()
    assert pool.spare_pids == []
    pool.close()


def test_ranks_given_back_after_the_pool_was_closed_end(
    config: EngineConfig, pool: RankPool
) -> None:
    executor = started(config, pool, ONE)
    pids = executor.pids
    pool.close()
    executor.close()
    wait_gone(pids)
    with pytest.raises(RankError, match="closed"):
        started(config, pool)
