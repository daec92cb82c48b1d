"""A profiled server as a node: simulated by what was seen of it, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.spec.model import DType
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Caps, Settings
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.described.profiled import profiled_node
from tuner.described.server_profile import Checked, ProfiledPlan, ServerProfile
from tuner.hardware import Precision
from tuner.planner.planner import make_plan
from tuner.planner.replan import replanner
from tuner.planner.ways_out import find_ways_out
from tuner.servers.probes import chunk_shapes
from tuner.spec.errors import TunerError
from tuner.spec.front_end import FrontEnd
from tuner.step_model.operators import Curve
from tuner.step_model.server import ServerSteps
from tuner.step_model.server_fit import SeenSteps
from tuner.work.counts import model_sizes
from tuner.work.models import load_model
from tuner.workload.parse import parse_workload

MODEL = load_model("llama-3.1-8b")
STEPS = ServerSteps(
    rows=Curve(x=(1.0, 2.0**24), y=(0.01, 0.01 + 2.0**24 * 1e-5)),
    per_seq_s=1e-3,
    per_pair_s=0.0,
    per_context_s=0.0,
)
SHAPES = tuple(chunk_shapes(700, 512))
KNOWN = ProfiledPlan(
    plan="tp=2",
    caps=Caps(max_num_seqs=8, max_num_batched_tokens=512),
    kv_blocks=100,
    block_size=16,
    steps=STEPS,
    front_end=FrontEnd(request_s=0.004),
    seen=(SeenSteps(name="a", shapes=SHAPES, seconds=1.0, repeats=1, spread=0.0),),
    errors=(0.02,),
    step_interval=0.05,
    took_s=1.0,
    check="closed:...",
    checked=(
        Checked(metric="mean_tpot_ms", measured=11.0, simulated=10.0),
        Checked(metric="mean_ttft_ms", measured=90.0, simulated=10.0),
    ),
)  # fmt: skip
PROFILE = ServerProfile(
    system="vllm",
    release="0.32.0",
    model=model_sizes(MODEL),
    dtype=DType.BFLOAT16,
    max_model_len=4096,
    plans=(KNOWN,),
    created="",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    return file


def test_a_profile_is_read_as_it_was_written(path: Path) -> None:
    assert ServerProfile.read(path) == PROFILE


def test_requests_take_the_steps_that_were_seen(path: Path) -> None:
    node = profiled_node(path, MODEL)
    alone = parse_workload("closed:concurrency=1,input=100,output=11,requests=2", seed=0)
    settings = Settings(plan=ParallelPlan(tp=2), caps=KNOWN.caps)
    found = flat_metrics(node.simulate(settings, alone).measurement, None)
    assert found["mean_tpot_ms"] == pytest.approx(11.0)
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * (0.004 + 0.01 + 99e-5 + 1e-3))


def test_plans_that_were_not_profiled_are_refused_with_those_that_were(path: Path) -> None:
    node = profiled_node(path, MODEL)
    for text in ("tp=1", "pp=2", "dp=2,tp=1"):
        plan = parse_plan(text).plan
        for ask in (node.timer, node.memory, node.num_kv_blocks):
            with pytest.raises(TunerError, match="was not profiled, only tp=2"):
                ask(plan)


def test_replicas_of_a_profiled_plan_take_its_steps_and_have_its_room(path: Path) -> None:
    node = profiled_node(path, MODEL)
    two = ParallelPlan(dp=2, tp=2)
    assert node.num_kv_blocks(two) == node.num_kv_blocks(ParallelPlan(tp=2))
    assert any("as quick as one alone" in line for line in PROFILE.not_measured)
    load = parse_workload("closed:concurrency=2,input=100,output=11,requests=4", seed=0)
    found = flat_metrics(node.simulate(Settings(plan=two, caps=KNOWN.caps), load).measurement, None)
    assert found["mean_tpot_ms"] == pytest.approx(11.0), "each client has a replica for itself"


def test_planning_names_the_replicas_that_would_carry_a_load(path: Path) -> None:
    """It ended with an error: the replicas were plans that nobody had profiled."""
    load = parse_workload("poisson:rate=90,input=64,output=8,requests=200", seed=0)
    report = make_plan(profiled_node(path, MODEL), load, Sla.parse("p95_ttft_ms<=300"), jobs=1)
    assert report.selection.best is None
    with replanner(report, jobs=1) as again:
        ways = find_ways_out(report, again)
    assert ways.num_devices is not None
    assert ways.devices_settings is not None
    assert ways.num_devices > 2
    assert replace(ways.devices_settings.plan, dp=1) == ParallelPlan(tp=2)


def test_memory_is_what_the_server_told(path: Path) -> None:
    plan = ParallelPlan(tp=2)
    assert profiled_node(path, MODEL).num_kv_blocks(plan) == 100
    untold = replace(PROFILE, plans=(replace(KNOWN, kv_blocks=None),))
    path.write_text(json.dumps(untold.to_json()))
    assert profiled_node(path, MODEL).num_kv_blocks(plan) >= 8 * 4096 // 16
    assert any("does not tell" in line for line in untold.not_measured)


def test_its_error_is_the_larger_one_of_steps_and_of_a_load() -> None:
    assert PROFILE.interval == pytest.approx(0.0953, abs=1e-3), "waiting times are not step times"
    assert replace(KNOWN, step_interval=0.2).interval == 0.2


def test_another_model_or_format_is_refused(path: Path) -> None:
    with pytest.raises(TunerError, match="profiled with another model"):
        profiled_node(path, load_model("llama-3.1-70b"))
    with pytest.raises(TunerError, match="profiled in bfloat16, not fp8"):
        profiled_node(path, MODEL, precision=Precision.FP8)


def test_planning_judges_the_profiled_plan_and_says_why_no_other(path: Path) -> None:
    load = parse_workload("poisson:rate=2,input=64,output=8,requests=20", seed=0)
    report = make_plan(profiled_node(path, MODEL), load, Sla.parse("p95_ttft_ms<=5000"), jobs=1)
    assert report.selection.best is not None
    assert str(report.selection.best.settings.plan) == "tp=2"
    reasons = {failure.plan: failure.detail for failure in report.failures}
    assert "was not profiled" in reasons["tp=1"]
