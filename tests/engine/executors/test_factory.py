"""The factory picks the executor a config asks for and imports no other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.executors.factory import make_executor
from engine.executors.inline import InlineExecutor
from engine.executors.process import ProcessExecutor, device_of
from engine.spec.config import Collectives, EngineConfig, ExecutorKind
from engine.spec.errors import EngineError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan


@pytest.fixture
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(model_dir=tiny_model_dir)


@pytest.fixture
def model(config: EngineConfig) -> ModelConfig:
    return ModelConfig.from_dir(config.model_dir)


def test_one_rank_runs_inline_and_more_run_as_processes(
    config: EngineConfig, model: ModelConfig
) -> None:
    assert isinstance(make_executor(config, model, ParallelPlan()), InlineExecutor)
    assert isinstance(make_executor(config, model, ParallelPlan(tp=2)), ProcessExecutor)


def test_one_rank_can_be_a_process(config: EngineConfig, model: ModelConfig) -> None:
    config = replace(config, executor=ExecutorKind.PROCESS)
    assert isinstance(make_executor(config, model, ParallelPlan()), ProcessExecutor)


@pytest.mark.parametrize(
    ("kind", "words"), [(ExecutorKind.INLINE, "2 ranks"), (ExecutorKind.SIMULATED, "step timer")]
)
def test_what_cannot_be_built_is_refused_with_the_reason(
    config: EngineConfig, model: ModelConfig, kind: ExecutorKind, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        make_executor(replace(config, executor=kind), model, ParallelPlan(tp=2))


@pytest.mark.parametrize(
    ("device", "wanted", "backend"),
    [
        ("cpu", Collectives.AUTO, Collectives.SHM),
        ("cpu", Collectives.GLOO, Collectives.GLOO),
        ("cuda", Collectives.AUTO, Collectives.NCCL),
        ("cuda", Collectives.GLOO, Collectives.GLOO),
    ],
)
def test_ranks_are_joined_by_what_suits_the_device(
    config: EngineConfig,
    model: ModelConfig,
    device: str,
    wanted: Collectives,
    backend: Collectives,
) -> None:
    config = replace(config, device=device, collectives=wanted)
    assert ProcessExecutor(config, model, ParallelPlan(tp=2)).backend is backend


def test_collectives_of_another_device_are_refused(
    config: EngineConfig, model: ModelConfig
) -> None:
    config = replace(config, device="cpu", collectives=Collectives.NCCL)
    with pytest.raises(EngineError, match=r"'nccl'.*'cpu'"):
        _ = ProcessExecutor(config, model, ParallelPlan(tp=2)).backend


@pytest.mark.parametrize(
    ("device", "devices"),
    [("cpu", ["cpu", "cpu"]), ("cuda", ["cuda:0", "cuda:1"]), ("cuda:4", ["cuda:4", "cuda:5"])],
)
def test_ranks_take_devices_from_the_first_one_named(
    config: EngineConfig, device: str, devices: list[str]
) -> None:
    assert [device_of(replace(config, device=device), rank) for rank in range(2)] == devices


def test_ranks_that_do_not_use_nccl_share_the_devices_there_are(config: EngineConfig) -> None:
    config = replace(config, device="cuda", collectives=Collectives.GLOO)
    here = max(1, torch.cuda.device_count())
    assert device_of(config, here) == "cuda:0"


def test_a_front_end_over_processes_needs_no_torch() -> None:
    code = (
        "import sys, engine.executors.process, engine.executors.factory\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
