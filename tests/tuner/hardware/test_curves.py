"""The shipped curves: what any believable device obeys."""

from __future__ import annotations

import json

import pytest

from engine.spec.model import DType
from engine.spec.modes import BASE, ENDS, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.tuner.worlds import LLAMA_70B
from tuner.hardware import Launch, Precision, paced_timer, parse_hardware
from tuner.hardware.curves import Curves
from tuner.hardware.device import DEVICES
from tuner.spec.catalog import CURVES_SUFFIX
from tuner.spec.errors import TunerError
from tuner.work.models import load_model

CALIBRATED = ("a100", "h100", "h200")
MAX_BYTES = 128 * 1024


def decode(num_seqs: int, context: int, mode: Mode = BASE) -> StepShape:
    return StepShape(
        mode=mode,
        num_seqs=num_seqs,
        num_decode_tokens=num_seqs,
        decode_context_tokens=num_seqs * context,
        num_sampled=num_seqs,
    )


def chunk(num_tokens: int, prefix: int = 0) -> StepShape:
    return StepShape(
        num_seqs=1,
        num_prefill_tokens=num_tokens,
        prefill_context_tokens=prefix + num_tokens,
        prefill_attention_pairs=num_tokens * prefix + num_tokens * (num_tokens + 1) // 2,
        num_sampled=1,
    )


def seconds(
    shape: StepShape,
    *,
    hardware: str = "8xh200",
    plan: ParallelPlan | None = None,
    precision: Precision = Precision.BF16,
    launch: Launch = Launch.GRAPH,
) -> float:
    plan = plan or ParallelPlan(tp=8)
    node = parse_hardware(hardware)
    return sum(paced_timer(node, LLAMA_70B, plan, precision, launch=launch).stage_seconds(shape))


@pytest.mark.parametrize("name", CALIBRATED)
def test_curves_are_small_and_name_their_source_and_error(name: str) -> None:
    path = DEVICES.folder / f"{name}{CURVES_SUFFIX}"
    assert path.stat().st_size < MAX_BYTES
    curves = Curves.from_json(json.loads(path.read_text()), where=path.name)
    assert "Apache-2.0" in curves.licence
    assert all(len(source.sha256) == 64 for source in curves.sources)
    for kind, limit in (("gemm.bfloat16", 0.06), ("prefill", 0.08), ("decode", 0.08),
                        ("collectives", 0.10)):  # fmt: skip
        assert curves.held_out[kind].median <= limit


def test_curves_of_another_schema_or_without_a_part_are_refused_by_name() -> None:
    with pytest.raises(TunerError, match=r"x\.json: schema 'curves/v9'"):
        Curves.from_json({"schema": "curves/v9"}, where="x.json")
    with pytest.raises(TunerError, match=r"x\.json: .*device"):
        Curves.from_json({"schema": "curves/v1"}, where="x.json")


@pytest.mark.parametrize("name", CALIBRATED)
def test_more_work_never_takes_less_time(name: str) -> None:
    node = parse_hardware(f"8x{name}")
    plan = ParallelPlan(sp=4, tp=2, shift=True)
    timer = paced_timer(node, LLAMA_70B, plan, DType.BFLOAT16)
    for mode in ENDS:
        batches = [sum(timer.stage_seconds(decode(b, 2000, mode))) for b in range(1, 300, 7)]
        assert batches == sorted(batches)
    contexts = [sum(timer.stage_seconds(decode(16, c))) for c in range(1, 200_000, 2500)]
    assert contexts == sorted(contexts)
    chunks = [sum(timer.stage_seconds(chunk(n))) for n in range(16, 20_000, 333)]
    assert chunks == sorted(chunks)
    prefixes = [sum(timer.stage_seconds(chunk(512, p))) for p in range(0, 100_000, 3000)]
    assert prefixes == sorted(prefixes)


def test_a_device_with_more_bandwidth_decodes_faster() -> None:
    times = [seconds(decode(16, 4000), hardware=f"8x{name}") for name in CALIBRATED]
    assert times == sorted(times, reverse=True)


def test_weights_in_fp8_are_read_in_less_time() -> None:
    shape = decode(1, 1000)
    plan = ParallelPlan(tp=2)
    fp8 = seconds(shape, plan=plan, precision=Precision.FP8)
    assert fp8 < 0.75 * seconds(shape, plan=plan)


def test_fp8_is_refused_where_the_device_cannot() -> None:
    with pytest.raises(TunerError, match=r"a100 has no peak for float8"):
        seconds(decode(1, 1), hardware="8xa100", precision=Precision.FP8)


def test_fp16_is_timed_as_bf16() -> None:
    shape = decode(8, 1000)
    assert seconds(shape, precision=Precision.FP16) == seconds(shape)


def test_launching_without_graphs_costs_steps_that_are_shorter_than_the_launches() -> None:
    node, model = parse_hardware("2xh200"), load_model("qwen3-0.6b")

    def ratio(shape: StepShape) -> float:
        eager, replayed = (
            paced_timer(node, model, ParallelPlan(tp=2), Precision.BF16, launch=launch)
            for launch in (Launch.EAGER, Launch.GRAPH)
        )
        return sum(eager.stage_seconds(shape)) / sum(replayed.stage_seconds(shape))

    assert ratio(decode(1, 100)) > 1.1
    assert ratio(chunk(16_384)) < 1.1


def test_a_tensor_group_across_nodes_talks_longer_than_one_inside() -> None:
    node = parse_hardware("16xh100")
    inside, across = (
        paced_timer(node, LLAMA_70B, ParallelPlan(tp=tp), Precision.BF16).breakdown(chunk(4096), 0)
        for tp in (8, 16)
    )
    assert across.communication_s > 1.5 * inside.communication_s
    assert across.gemm_s < inside.gemm_s


def test_the_parts_of_a_stage_add_up() -> None:
    plan = ParallelPlan(pp=2, tp=4)
    for launch in Launch:
        timer = paced_timer(parse_hardware("8xh200"), LLAMA_70B, plan, Precision.FP8, launch=launch)
        for shape in (decode(4, 1000), chunk(2048, 1000)):
            parts = [timer.breakdown(shape, stage).total_s for stage in range(2)]
            assert parts == pytest.approx(timer.stage_seconds(shape))


def test_a_decode_step_of_70b_in_fp8_is_near_what_its_memory_allows() -> None:
    """Not faster than reading 70 GB over 8 x 4.8 TB/s; within 5 times of it."""
    bound_s = 70e9 / (8 * 4.8e12)
    assert bound_s < seconds(decode(1, 4000), precision=Precision.FP8) < 5 * bound_s
