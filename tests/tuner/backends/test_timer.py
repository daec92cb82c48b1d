"""Step times of served plans: what the host adds, hides and how a step divides."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from tuner.backends import Backend, ServedTimer, load_backend
from tuner.backends.backend import HostTimes, KernelTimes
from tuner.described.node import Node
from tuner.hardware import KvFormat, Precision, parse_hardware
from tuner.work.models import load_model
from tuner.workload.parse import parse_workload

TP8 = ParallelPlan(tp=8)
SHIFT_PLAN = ParallelPlan(sp=8, shift=True)
HOST = HostTimes(step_s=1e-3, seq_s=20e-6, is_overlapped=False)
PLAIN = replace(load_backend("vllm"), host=HOST, kernels=KernelTimes())


def node(backend: Backend, precision: str = "fp8") -> Node:
    return Node(
        hardware=parse_hardware("8xh200"),
        model=load_model("llama-3.1-70b"),
        precision=Precision.parse(precision),
        backend=backend,
    )


def timer(backend: Backend, plan: ParallelPlan = TP8, precision: str = "fp8") -> ServedTimer:
    return node(backend, precision).timer(plan)


def decode(seqs: int, context: int = 2048, mode: Mode = SHIFT) -> StepShape:
    return StepShape(
        mode=mode,
        num_seqs=seqs,
        num_decode_tokens=seqs,
        decode_context_tokens=seqs * context,
        num_sampled=seqs,
    )


def mixed(seqs: int, prompt: int) -> StepShape:
    pairs = prompt * (prompt + 1) // 2
    return StepShape(
        mode=SHIFT,
        num_seqs=seqs + 1,
        num_decode_tokens=seqs,
        num_prefill_tokens=prompt,
        decode_context_tokens=seqs * 1024,
        prefill_context_tokens=prompt,
        prefill_attention_pairs=pairs,
        num_sampled=seqs + 1,
    )


def test_overlap_hides_the_host_behind_the_ranks_work() -> None:
    shape = decode(64)
    hidden = timer(replace(PLAIN, host=replace(HOST, is_overlapped=True)))
    assert timer(PLAIN).host_seconds(shape) == pytest.approx(1e-3 + 64 * 20e-6)
    assert hidden.host_seconds(shape) == 0.0


def test_keys_and_values_in_fp8_take_half_the_room_and_long_contexts_less_time() -> None:
    plain, narrow = (node(replace(PLAIN, kv_cache_dtype=kv)) for kv in KvFormat)
    rooms = [each.memory(TP8).kv_tokens for each in (plain, narrow)]
    assert rooms[1] == pytest.approx(2 * rooms[0], rel=1e-4)
    for shape, least in ((decode(256, 8192), 0.6), (decode(1, 16), 0.99)):
        long_s, short_s = (sum(each.timer(TP8).stage_seconds(shape)) for each in (plain, narrow))
        assert least < short_s / long_s < 1.01
    assert sum(narrow.timer(TP8).stage_seconds(decode(256, 8192))) < 0.9 * sum(
        plain.timer(TP8).stage_seconds(decode(256, 8192))
    )


def test_stages_add_what_their_host_work_says_and_one_stage_nothing() -> None:
    host = replace(HOST, pipeline_step_s=5e-3, pipeline_seq_s=1e-4)
    staged, alone = ParallelPlan(tp=4, pp=2), TP8
    shape = decode(64)
    for plan, added_s in ((staged, 5e-3 + 64e-4), (alone, 0.0)):
        told = timer(replace(PLAIN, host=host), plan).host_seconds(shape)
        assert told == pytest.approx(timer(PLAIN, plan).host_seconds(shape) + added_s)


def test_what_is_longer_than_the_ranks_work_is_waited_for() -> None:
    slow = replace(HOST, step_s=1.0, is_overlapped=True, exposed_s=1e-3)
    served = timer(replace(PLAIN, host=slow))
    shape = decode(64)
    waited = served.host_seconds(shape)
    assert waited + sum(served.stage_seconds(shape)) == pytest.approx(1.0 + 64 * 20e-6 + 1e-3)


def test_a_prompt_adds_to_the_hosts_work() -> None:
    host = replace(HOST, request_s=2e-3, prompt_token_s=1e-6)
    served = timer(replace(PLAIN, host=host))
    assert served.host_seconds(mixed(4, 1000)) == pytest.approx(
        timer(PLAIN).host_seconds(mixed(4, 1000)) + 3e-3
    )


def test_kernels_started_one_by_one_set_the_pace_of_steps_with_prompts_alone() -> None:
    host = replace(HOST, prompt_layer_s=1e-3, is_overlapped=True)
    eager, graphs = (
        timer(replace(PLAIN, host=h)) for h in (host, replace(HOST, is_overlapped=True))
    )

    def step_s(served: ServedTimer, shape: StepShape) -> float:
        return served.host_seconds(shape) + sum(served.stage_seconds(shape))

    assert step_s(eager, mixed(4, 10)) == pytest.approx(80e-3 + 1e-3 + 5 * 20e-6)
    assert step_s(eager, decode(64)) == step_s(graphs, decode(64))
    # The device takes longer than starting its kernels does: nothing is added.
    assert step_s(eager, mixed(4, 8000)) == step_s(graphs, mixed(4, 8000))


@pytest.mark.parametrize("name", ["gearshift", "vllm", "arctic", "trtllm"])
def test_steps_never_get_shorter_with_more_sequences(name: str) -> None:
    served = timer(load_backend(name))
    steps = [served.breakdown(decode(seqs)).step_s for seqs in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


@pytest.mark.parametrize("shape", [decode(128), mixed(16, 2000)], ids=["decode", "mixed"])
@pytest.mark.parametrize("plan", [TP8, ParallelPlan(pp=2, tp=4)], ids=str)
@pytest.mark.parametrize("name", ["vllm", "trtllm", "gearshift"])
def test_a_breakdown_adds_up_to_the_step(name: str, plan: ParallelPlan, shape: StepShape) -> None:
    served = timer(load_backend(name), plan)
    parts = served.breakdown(shape)
    assert parts.step_s == pytest.approx(
        sum(served.stage_seconds(shape)) + served.host_seconds(shape),
        rel=1e-3,  # steps are looked up in tables, parts are not
    )
    assert parts.exposed_s <= parts.host_s + 1e-12
    assert all(getattr(parts, f.name) >= 0 for f in fields(parts))
    assert parts.gemm_s > 0
    assert parts.communication_s > 0


def test_kernel_factors_scale_their_kind_only() -> None:
    shape = mixed(32, 3000)
    plain = timer(PLAIN).breakdown(shape)
    faster = replace(PLAIN, kernels=KernelTimes(fp8_gemm=0.5, attention=0.8, communication=2.0))
    scaled = timer(faster).breakdown(shape)
    assert scaled.gemm_s == pytest.approx(0.5 * plain.gemm_s)
    assert scaled.attention_s == pytest.approx(0.8 * plain.attention_s)
    assert scaled.communication_s == pytest.approx(2.0 * plain.communication_s)
    assert scaled.elementwise_s == pytest.approx(plain.elementwise_s)
    assert scaled.head_s == pytest.approx(plain.head_s)


def test_each_number_format_has_its_own_factor_of_products() -> None:
    slower = replace(PLAIN, kernels=KernelTimes(gemm=2.0))
    shape = decode(32)
    for precision, factor in (("fp8", 1.0), ("bf16", 2.0)):
        plain = timer(PLAIN, precision=precision).breakdown(shape)
        scaled = timer(slower, precision=precision).breakdown(shape)
        assert scaled.gemm_s == pytest.approx(factor * plain.gemm_s)


def test_a_second_copy_of_the_weights_leaves_less_room_for_kv_in_a_shift_plan_only() -> None:
    vllm, arctic = node(load_backend("vllm")), node(load_backend("arctic"))
    plain = ParallelPlan(sp=8)
    assert arctic.num_kv_blocks(SHIFT_PLAN) < vllm.num_kv_blocks(SHIFT_PLAN)
    assert arctic.num_kv_blocks(plain) == vllm.num_kv_blocks(plain)


def test_collectives_issued_from_python_slow_small_base_steps() -> None:
    graphs, eager = (
        timer(load_backend("vllm"), SHIFT_PLAN),
        timer(load_backend("arctic"), SHIFT_PLAN),
    )
    base = decode(512, mode=BASE)
    assert sum(eager.stage_seconds(base)) > sum(graphs.stage_seconds(base))
    # In shift mode their issue hides behind layers of this size.
    assert sum(eager.stage_seconds(decode(8))) >= sum(graphs.stage_seconds(decode(8)))


def test_a_pipeline_never_starts_steps_faster_than_its_overlapped_host_makes_them() -> None:
    backend = replace(
        PLAIN, host=HostTimes(step_s=5e-3, seq_s=0.0, is_overlapped=True), schedules_ahead=False
    )
    pipeline = node(backend)
    plan = ParallelPlan(pp=8)
    workload = parse_workload("closed:concurrency=64,input=64,output=40,requests=64", seed=0)
    result = pipeline.simulate(Settings(plan=plan, caps=backend.default_caps), workload)
    ends = sorted(end for segment in result.segments for end in segment.end_s)
    assert len(ends) / (ends[-1] - ends[0]) < 1 / 5e-3 * 1.05
