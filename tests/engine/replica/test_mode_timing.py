"""Timing both modes at the start: what is run, what is stored, and what is timed anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.executors.clock import VirtualClock
from engine.executors.protocol import Executor
from engine.executors.simulated import SimulatedExecutor
from engine.modes.table import ModeTable
from engine.replica.mode_timing import (
    MAX_ROUNDS,
    SyntheticSteps,
    mode_fingerprint,
    mode_table_for,
    padded_sizes,
    time_modes,
)
from engine.spec.config import EngineConfig, ExecutorKind, LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE, ENDS, SHIFT, TABLE, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.request import SamplingParams
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepPlan, StepShape, int32
from engine.wire.rank_table import RankTable
from tests.engine.configs import with_settings
from tests.engine.step_driver import StepDriver
from tests.engine.thread_ranks import ThreadReplica

PLAN = ParallelPlan(sp=2, shift=True)
CAPS = Caps(max_num_seqs=16, max_num_batched_tokens=300)

Pace = Callable[[Mode, int], float]


def crossing(mode: Mode, num_tokens: int) -> float:
    """Milliseconds of a step; the lines cross at 75 tokens."""
    fixed_ms, token_ms = (10.0, 0.02) if mode == BASE else (4.0, 0.1)
    return fixed_ms + token_ms * num_tokens


class PacedTimer:
    """Two stages or one, each with its share of a step's time."""

    def __init__(self, pace: Pace, pp: int = 1) -> None:
        self._pace = pace
        self._pp = pp

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return (self._pace(shape.mode, shape.num_tokens) * 1e-3 / self._pp,) * self._pp

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


class WatchedExecutor(SimulatedExecutor):
    """Notes the shape of every step it is given."""

    def __init__(self, pace: Pace = crossing, plan: ParallelPlan = PLAN) -> None:
        super().__init__(
            plan=plan,
            model_vocab_size=500,
            num_kv_blocks=64,
            timer=PacedTimer(pace, plan.pp),
            clock=VirtualClock(),
        )
        self.shapes: list[StepShape] = []

    def submit(self, step: StepPlan) -> None:
        self.shapes.append(step.shape)
        super().submit(step)


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir,
        envelope=CAPS,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=64,
        mode_table_path=tmp_path / "tables",
        settings=Settings(plan=PLAN, caps=CAPS),
    )


def table_of(executor: WatchedExecutor, config: EngineConfig) -> ModeTable:
    model = ModelConfig.from_dir(config.model_dir)
    return mode_table_for(executor, executor.start(), config, model, config.settings.plan)


def synthetic_steps(**changes: int) -> SyntheticSteps:
    values = {
        "max_num_seqs": 16, "longest": 400, "block_size": 16, "num_kv_blocks": 64,
        "vocab_size": 500, **changes,
    }  # fmt: skip
    return SyntheticSteps(**values)


def test_the_table_switches_where_the_step_times_cross(config: EngineConfig) -> None:
    table = table_of(WatchedExecutor(), config)
    assert table.largest_shift_tokens == table.threshold_tokens == 64
    assert table.num_timed == len(table.sizes)
    assert table.seconds(SHIFT, 60) == pytest.approx(10.4e-3)
    assert (table.plan, table.device) == ("sp=2,shift", "simulated")


def test_with_several_stages_a_steps_time_is_that_of_all_of_them(config: EngineConfig) -> None:
    plan = ParallelPlan(pp=2, sp=2, shift=True)
    table = table_of(WatchedExecutor(plan=plan), with_settings(config, plan=plan))
    assert table.seconds(BASE, 64) == pytest.approx(11.28e-3)


def test_every_size_is_run_in_both_modes_in_turns_every_fourth_first(config: EngineConfig) -> None:
    executor = WatchedExecutor()
    table = table_of(executor, config)
    timed = [(shape.num_tokens, shape.mode) for shape in executor.shapes][-2 * len(table.sizes) :]
    sizes = [tokens for tokens, _ in timed[::2]]
    assert timed == [(tokens, mode) for tokens in sizes for mode in PLAN.modes]
    assert sorted(sizes) == [min(size, 300) for size in table.sizes]
    assert tuple(sizes[: -(-len(sizes) // 4)]) == table.sizes[::4]


def test_what_the_budget_leaves_no_time_for_follows_from_what_was_timed_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.replica.mode_timing.BUDGET_S", 0.1)
    executor = WatchedExecutor()
    executor.start()
    sizes = padded_sizes(4096, PLAN)
    table = time_modes(
        executor,
        plan=PLAN,
        sizes=sizes,
        steps=synthetic_steps(),
        max_tokens=4096,
        fingerprint="f00d",
        device="simulated",
    )
    assert table.sizes == sizes
    timed = [size for size, is_timed in zip(sizes, table.is_timed, strict=True) if is_timed]
    assert 2 <= len(timed) < len(sizes)
    assert {shape.num_tokens for shape in executor.shapes} == set(timed)
    assert sum(table.seconds(mode, size) for mode in PLAN.modes for size in timed) <= 0.1
    assert table.seconds(BASE, 4096) == pytest.approx((10 + 0.02 * 4096) * 1e-3)
    assert table.faster(4096) == BASE


def test_two_sizes_are_timed_whatever_they_take() -> None:
    executor = WatchedExecutor(lambda mode, num_tokens: 60_000.0 + num_tokens)
    executor.start()
    table = time_modes(
        executor,
        plan=PLAN,
        sizes=padded_sizes(64, PLAN),
        steps=synthetic_steps(),
        max_tokens=64,
        fingerprint="f00d",
        device="simulated",
    )
    assert table.num_timed == 2


def test_a_stored_table_saves_the_timing_at_the_next_start(config: EngineConfig) -> None:
    first, second = WatchedExecutor(), WatchedExecutor()
    timed = table_of(first, config)
    assert table_of(second, config) == timed
    # Two steps of each mode show which hardware paced ranks imitate.
    assert len(second.shapes) == 4 < len(first.shapes)


def test_another_machine_is_timed_and_keeps_its_own_table_in_the_folder(
    config: EngineConfig,
) -> None:
    slower = WatchedExecutor(lambda mode, num_tokens: 2 * crossing(mode, num_tokens))
    tables = [table_of(executor, config) for executor in (WatchedExecutor(), slower)]
    assert len(slower.shapes) > 4
    assert tables[0].fingerprint != tables[1].fingerprint
    assert config.mode_table_path is not None
    assert len(list(config.mode_table_path.iterdir())) == 2


def test_a_file_with_another_machines_table_is_replaced(
    config: EngineConfig, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    config = replace(config, mode_table_path=path)
    table_of(WatchedExecutor(), config)
    slower = WatchedExecutor(lambda mode, num_tokens: 2 * crossing(mode, num_tokens))
    table = table_of(slower, config)
    assert len(slower.shapes) > 4
    assert json.loads(path.read_text())["fingerprint"] == table.fingerprint


def test_without_a_path_nothing_is_stored(config: EngineConfig, tmp_path: Path) -> None:
    table_of(WatchedExecutor(), replace(config, mode_table_path=None))
    assert list(tmp_path.iterdir()) == []


def test_whatever_moves_step_times_moves_the_fingerprint(config: EngineConfig) -> None:
    model = ModelConfig.from_dir(config.model_dir)
    found = [
        mode_fingerprint(config, model, PLAN, device="cpu"),
        mode_fingerprint(config, model, PLAN, device="H200"),
        mode_fingerprint(config, replace(model, num_layers=9), PLAN, device="cpu"),
        mode_fingerprint(config, model, replace(PLAN, tp=2), device="cpu"),
    ] + [
        mode_fingerprint(changed, model, PLAN, device="cpu")
        for changed in (
            replace(config, dtype=DType.BFLOAT16),
            replace(config, link=LinkEmulation(latency_us=20)),
            replace(config, block_size=32),
            replace(config, parallel_sampling=False),
            replace(config, device="cuda"),
            replace(config, device="cuda", max_graph_tokens=0),
        )
    ]
    assert len(set(found)) == len(found)
    settings = replace(config.settings, threshold_tokens=7, pin=TABLE)
    same = replace(config, settings=settings, mode_table_path=None)
    assert mode_fingerprint(same, model, PLAN, device="cpu") == found[0]


@given(max_tokens=st.integers(1, 9000), sp=st.integers(2, 8))
def test_sizes_ascend_in_multiples_of_sp_up_to_the_largest_step(max_tokens: int, sp: int) -> None:
    sizes = padded_sizes(max_tokens, ParallelPlan(sp=sp, shift=True))
    assert list(sizes) == sorted(set(sizes))
    assert all(size % sp == 0 for size in sizes)
    assert max_tokens <= sizes[-1] < max_tokens + sp


@settings(max_examples=50)
@given(
    max_num_seqs=st.integers(1, 40),
    longest=st.integers(1, 700),
    block_size=st.sampled_from([1, 4, 16]),
    num_kv_blocks=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
)
def test_ranks_can_run_every_step_and_sample_every_row_of_it(
    max_num_seqs: int, longest: int, block_size: int, num_kv_blocks: int, sizes: list[int]
) -> None:
    steps = synthetic_steps(
        max_num_seqs=max_num_seqs,
        longest=longest,
        block_size=block_size,
        num_kv_blocks=num_kv_blocks,
    )
    table = RankTable(num_slots=max_num_seqs, max_blocks=-(-longest // block_size))
    for size in (min(size, max_num_seqs * longest) for size in sizes):
        for i in range(2 * MAX_ROUNDS):
            step = steps.build(size, SHIFT, step_id=i, num_before=i)
            rows = table.apply(step)
            assert rows.query_lens.sum() == step.shape.num_tokens == size
            assert len(rows.sample_rows) == step.shape.num_sampled == len(rows.slots)
            needed = -(-(rows.context_lens + rows.query_lens) // block_size)
            for row, blocks in zip(rows.block_tables, needed, strict=True):
                assert ((row[:blocks] >= 0) & (row[:blocks] < num_kv_blocks)).all()
            assert (int32(step.slots) < max_num_seqs).all()


class TimedThreads(ThreadReplica):
    """Ranks as threads, with as much of an executor as timing uses."""

    needs_inputs = True


@pytest.mark.parametrize("plan", [PLAN, ParallelPlan(pp=2, sp=2, tp=2, shift=True)], ids=str)
def test_timing_leaves_nothing_behind_on_the_ranks(
    tiny_model_dir: Path, plan: ParallelPlan
) -> None:
    def outputs(*, is_timed: bool) -> list[list[int]]:
        with TimedThreads(model_dir=tiny_model_dir, plan=plan) as replica:
            if is_timed:
                time_modes(
                    cast(Executor, replica),
                    plan=plan,
                    sizes=padded_sizes(24, plan),
                    steps=synthetic_steps(max_num_seqs=8, longest=40, block_size=4),
                    max_tokens=24,
                    fingerprint="f00d",
                    device="cpu",
                )
            driver = StepDriver(replica, vocab_size=515, mode=lambda step_id: ENDS[step_id % 2])
            prompts = [[7, 8, 9], list(range(3, 30)), [11]]
            return [found.output for found in driver.run(prompts, max_tokens=8)]

    assert outputs(is_timed=True) == outputs(is_timed=False)


@pytest.mark.usefixtures("lasting_ranks")
def test_real_ranks_are_timed_and_answer_the_same_afterwards(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=32)
    config = EngineConfig(
        model_dir=tiny_model_dir,
        envelope=caps,
        dtype=DType.FLOAT64,
        block_size=4,
        num_kv_blocks=64,
        mode_table_path=tmp_path,
        settings=Settings(caps=caps),
    )
    prompt, sampling = range(3, 43), SamplingParams(max_tokens=12, ignore_eos=True)
    with Engine(config) as single:
        expected = single.generate(tuple(prompt), sampling).token_ids
    with Engine(replace(config, settings=Settings(plan=PLAN, caps=caps, pin=TABLE))) as engine:
        (table,) = engine.mode_tables()
        assert engine.generate(tuple(prompt), sampling).token_ids == expected
        engine.check_integrity()
    assert table is not None
    assert table.sizes == padded_sizes(32, PLAN)
    assert table.num_timed >= 2
    (path,) = tmp_path.iterdir()
    assert ModeTable.from_json(json.loads(path.read_text()), where=str(path)) == table
