"""One reading of model, hardware and format: tune, plan, simulate and paced engines agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.spec.config import EngineConfig, ExecutorKind, num_kv_blocks
from engine.spec.errors import PlanError
from engine.spec.model import DType
from engine.spec.modes import BASE
from engine.spec.plan import parse_plan
from engine.spec.settings import Caps
from engine.spec.steps import StepShape
from tuner.backends import load_backend
from tuner.described.parse import describe_node, has_checkpoint, paced_config, read_rank_dtype
from tuner.described.reshape_cost import reshape_cost
from tuner.hardware import Precision
from tuner.hardware.device import load_device
from tuner.search.prepare import prepare
from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError

SPEC = TuningSpec(
    model_dir="llama-3.1-8b",
    num_devices=1,
    workload="poisson:rate=4,input=200,output=8,requests=6",
    sla="p95_ttft_ms<=500",
    hardware="1xh200",
    dtype="fp8",
    backend="vllm",
)


def test_a_tuning_job_has_the_memory_and_step_times_of_the_described_node() -> None:
    node = describe_node(
        model="llama-3.1-8b", hardware="1xh200", dtype="fp8", backend="vllm", block_size=16
    )
    plan = parse_plan("tp=1").plan
    shape = StepShape(
        mode=BASE, num_seqs=8, num_decode_tokens=8, decode_context_tokens=4000, num_sampled=8
    )
    with prepare(SPEC) as context:
        # One engine runs all trials, so it keeps room for the largest steps that any of them takes.
        blocks = node.num_kv_blocks(plan, context.space.envelope)
        assert context.simulator.blocks_of(plan) == blocks
        timer = context.simulator.timer(plan)
        assert timer.stage_seconds(shape) == node.timer(plan).stage_seconds(shape)
        assert timer.host_seconds(shape) == node.timer(plan).host_seconds(shape)
        settings = next(iter(context.design))
        run = context.simulator.run(settings, context.trial_workload)
        assert run == node.simulate(settings, context.trial_workload).measurement


def test_a_paced_engine_has_the_memory_of_its_node_under_every_plan() -> None:
    node = describe_node(model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="gearshift")
    config = paced_config(EngineConfig(model_dir=Path("x")), node)
    assert config.executor is ExecutorKind.SIMULATED
    assert config.dtype is DType.BFLOAT16
    for text in ("tp=2", "tp=8", "sp=4,tp=2,shift"):
        plan = parse_plan(text).plan
        assert num_kv_blocks(config, node.model, plan) == node.num_kv_blocks(plan)
        assert config.start_s_of is not None
        assert config.start_s_of(plan) == reshape_cost(node, plan).seconds > 0
    large = describe_node(model="llama-3.1-405b", hardware="8xh200", dtype="bf16")
    small = paced_config(EngineConfig(model_dir=Path("x"), envelope=Caps()), node)
    assert num_kv_blocks(small, node.model, plan) == node.num_kv_blocks(plan, Caps())
    assert num_kv_blocks(small, node.model, plan) > node.num_kv_blocks(plan)
    with pytest.raises(PlanError, match="GB of weights per rank"):
        num_kv_blocks(
            paced_config(EngineConfig(model_dir=Path("x")), large),
            large.model,
            parse_plan("tp=2").plan,
        )


def test_ranks_take_every_spelling_of_what_they_compute_in_and_refuse_fp8() -> None:
    model = describe_node(model="llama-3.1-8b", hardware="h100").model
    assert read_rank_dtype("bf16", model) is read_rank_dtype("bfloat16", model) is DType.BFLOAT16
    assert read_rank_dtype(None, model) is read_rank_dtype("auto", model) is model.dtype
    with pytest.raises(TunerError, match="described hardware"):
        read_rank_dtype("fp8", model)
    with pytest.raises(TunerError, match="known are auto, float64"):
        read_rank_dtype("int3", model)


def test_without_a_dtype_the_model_says_it() -> None:
    assert describe_node(model="qwen3-8b", hardware="h100").precision is Precision.BF16
    assert not has_checkpoint("qwen3-8b")


def test_a_node_is_as_uncertain_as_the_less_certain_of_device_and_backend() -> None:
    def interval(hardware: str, backend: str) -> float:
        return describe_node(model="qwen3-8b", hardware=hardware, backend=backend).interval

    for backend in ("trtllm", "gearshift"):
        wider = max(load_backend(backend).interval, load_device("h200").interval)
        assert interval("h200", backend) == wider
    assert interval("mi325x", "trtllm") == load_device("mi325x").interval


def test_a_context_that_the_model_does_not_have_is_refused_with_the_one_it_has() -> None:
    with pytest.raises(TunerError, match="has a context of 131072 tokens"):
        describe_node(model="llama-3.1-8b", hardware="h100", max_model_len=131_073)


def test_an_emulated_link_is_for_ranks_here() -> None:
    with pytest.raises(TunerError, match="described hardware brings its own"):
        TuningSpec.from_json({**SPEC.to_json(), "link": "gbps=1"})


def test_a_paced_probe_needs_a_folder_to_start_an_engine_from() -> None:
    with pytest.raises(TunerError, match="no model folder"):
        TuningSpec.from_json({**SPEC.to_json(), "probe_paced": True})


@pytest.mark.parametrize("word", ["int4", "awq", "gptq", "w4a16"])
def test_every_word_for_4_bit_weights_means_the_same(word: str) -> None:
    node = describe_node(model="llama-3.1-8b", hardware="1xl4", dtype=word)
    assert node.precision is Precision.INT4
    assert node.precision.dtype is DType.BFLOAT16
    with pytest.raises(TunerError, match="do not compute in int4"):
        read_rank_dtype(word, node.model)


@pytest.mark.parametrize("word", [None, "auto"])
def test_a_model_published_with_quantised_weights_is_described_so(word: str | None) -> None:
    name = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    assert describe_node(model=name, hardware="8xl40s", dtype=word).precision is Precision.INT4
    told = describe_node(model=name, hardware="8xl40s", dtype="bf16")
    assert told.precision is Precision.BF16
