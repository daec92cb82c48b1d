"""A real profile of a tiny model on real ranks, and a tuning job that uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine.executors.ranks import RankProcesses
from engine.models.create import create_model
from engine.models.loader import Checkpoint
from engine.spec.config import EngineConfig
from engine.spec.measurement import Fidelity
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import parse_plan
from engine.spec.processor import num_cores
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Settings
from tests.engine.quantised_checkpoints import KINDS, W8A8, Kind, quantise_checkpoint
from tuner.profiling.operators import measuring_ranks, profile_operators
from tuner.profiling.pieces import cut_model
from tuner.profiling.profile import Profile
from tuner.profiling.run import ProfileSpec, run_profile
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialState
from tuner.search.tune import tune
from tuner.simulation.simulate import Ranks, SimulatedEngine, simulate
from tuner.spec.cancel import Cancellation
from tuner.spec.errors import CancelledError, TunerError
from tuner.step_model.fit import fit_step_model
from tuner.step_model.model import NO_COST, ServingCost
from tuner.work.counts import CollectiveKind
from tuner.workload.parse import parse_workload

pytestmark = pytest.mark.skipif(num_cores() < 2, reason="two ranks need two cores")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_model(folder, preset="tiny")
    return folder


@pytest.fixture(scope="module")
def profile(tiny: Path) -> Profile:
    return run_profile(ProfileSpec(model_dir=tiny, seconds=0.3, max_tokens=128, max_context=512))


@pytest.fixture(scope="module")
def tuned(tiny: Path, profile: Profile) -> dict[str, Any]:
    """A bound no machine misses: timings never decide a test."""
    spec = TuningSpec(
        model_dir=str(tiny),
        num_devices=2,
        workload="poisson:rate=100,input=48,output=8,requests=24",
        sla="p95_ttft_ms<=60000,attainment>=0.5",
        trials=2,
        probe_requests=12,
        seed=1,
    )
    model = fit_step_model(profile, ModelConfig.from_dir(tiny))
    return tune(spec, cost_model=json.loads(json.dumps(model.to_json()))).to_json()


def test_every_kind_of_operator_was_measured_with_one_and_two_ranks_at_work(
    profile: Profile,
) -> None:
    for rows in (profile.gemms, profile.attentions, profile.elementwise):
        assert {row.active_ranks for row in rows} == {1, 2}
        assert all(row.seconds > 0 for row in rows)
    assert {row.kind for row in profile.collectives} == set(CollectiveKind)
    assert {piece.plan for piece in profile.pieces} == {"tp=1", "tp=2", "sp=2,shift", "pp=2"}
    assert {sample.plan for sample in profile.samples} == {"tp=1"}


def test_more_ranks_than_cores_are_never_timed(tiny: Path, profile: Profile) -> None:
    most = max(row.active_ranks for row in profile.gemms)
    assert most <= num_cores()
    assert all(row.ranks <= num_cores() for row in profile.collectives)


def test_a_fitted_profile_predicts_plans_with_sane_times(tiny: Path, profile: Profile) -> None:
    model = ModelConfig.from_dir(tiny)
    step_model = fit_step_model(profile, model)
    workload = parse_workload("closed:concurrency=4,input=40,output=10,requests=12", seed=0)
    for text in ("tp=1", "tp=2", "sp=2,shift", "pp=2", "dp=2"):
        settings = Settings(plan=parse_plan(text).plan, threshold_tokens=64)
        engine = SimulatedEngine(
            model=model,
            ranks_of=lambda plan: Ranks(timer=step_model.timer(plan, model), num_kv_blocks=500),
        )
        result = simulate(engine, settings, workload)
        assert len(result.measurement.completed) == 12
        assert 0 < (result.measurement.tpot_ms.p50 or 0) < 1000


@pytest.mark.parametrize("part", ["operators", "passes", "serving run"])
def test_a_profile_that_is_cancelled_ends_in_any_part_and_leaves_no_rank(
    tiny: Path, part: str
) -> None:
    told: list[str] = []
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(CancelledError):
        run_profile(
            ProfileSpec(model_dir=tiny, num_ranks=1, seconds=0.3, max_tokens=128, max_context=512),
            on_event=told.append,
            cancel=Cancellation(lambda: any(part in text for text in told), every_s=0.0),
        )
    assert part in told[-1]
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_cut_model_has_fewer_layers_and_the_same_checkpoint(tiny: Path) -> None:
    with cut_model(tiny, 1) as folder:
        assert ModelConfig.from_dir(folder).num_layers == 1
        assert (folder / "model.safetensors").stat().st_size > 0


def test_a_cut_model_keeps_the_scales_of_quantised_weights(tiny: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    quantise_checkpoint(tiny, quantised, tmp_path / "plain", KINDS["fp8-block"])
    with cut_model(quantised, 1) as folder:
        model = ModelConfig.from_dir(folder)
        found = Checkpoint(folder, model, dtype=torch.float32)
        assert found.is_quantised("model.layers.0.mlp.down_proj.weight")


@pytest.fixture(scope="module")
def measuring_rank() -> Iterator[RankProcesses]:
    with measuring_ranks(1) as ranks:
        yield ranks


@pytest.mark.parametrize("kind", [W8A8, KINDS["compressed-int8"], KINDS["fp8-block"]])
def test_operators_of_a_quantised_checkpoint_are_timed(
    tiny: Path, tmp_path: Path, measuring_rank: RankProcesses, kind: Kind
) -> None:
    quantise_checkpoint(tiny, tmp_path / "quantised", tmp_path / "plain", kind)
    report = profile_operators(
        measuring_rank,
        EngineConfig(model_dir=tmp_path / "quantised", dtype=DType.BFLOAT16),
        num_ranks=1,
        degrees=[1],
        max_tokens=16,
        max_context=64,
        seconds=0.01,
    )
    model = ModelConfig.from_dir(tiny)
    assert {gemm.k for gemm in report.gemms} == {model.hidden_size, model.q_size, model.ffn_size}
    assert all(gemm.seconds > 0 for gemm in report.gemms)


@pytest.mark.slow
def test_a_plain_checkpoint_is_profiled_as_an_engine_quantises_it(tiny: Path) -> None:
    spec = ProfileSpec(
        model_dir=tiny,
        num_ranks=1,
        seconds=0.2,
        max_tokens=64,
        max_context=256,
        quantisation=WeightFormat.W8A8,
    )
    found = run_profile(spec)
    assert found.weights == "w8a8"
    model = ModelConfig.from_dir(tiny)
    assert {gemm.n for gemm in found.gemms} >= {model.vocab_size}
    fitted = fit_step_model(found, model)
    plain = TuningSpec(
        model_dir=str(tiny),
        num_devices=1,
        workload="poisson:rate=20,input=48,output=8,requests=8",
        sla="p95_ttft_ms<=60000",
    )
    with pytest.raises(TunerError, match="profiled with w8a8 weights, and this engine's are plain"):
        tune(plain, cost_model=json.loads(json.dumps(fitted.to_json())))
    rounded = replace(plain, quantization=WeightFormat.W8A8, trials=1)
    (trial,) = tune(rounded, cost_model=json.loads(json.dumps(fitted.to_json()))).trials
    assert (trial.state, trial.fidelity) == (TrialState.COMPLETE, Fidelity.MEASURED), trial.reason


def test_tuning_on_the_live_engine_ends_with_a_measured_recommendation(
    tuned: dict[str, Any],
) -> None:
    found = tuned["recommendation"]
    assert found["fidelity"] == "measured"
    assert found["measured"]["ttft_ms"]["p50"] > 0
    assert found["predicted"]["ttft_ms"]["p50"] > 0
    assert found["reason"]
    assert found["interval"]["measured"]["p95_ttft_ms"]["low"] > 0
    assert tuned["confirmations"][0]["is_met"]
    assert tuned["confirmations"][0]["seed"] != tuned["seed"]


def test_live_trials_start_at_all_devices_and_keep_what_was_predicted(
    tuned: dict[str, Any],
) -> None:
    first = tuned["trials"][0]
    assert (first["settings"]["plan"]["tp"], first["fidelity"]) == (2, "probed")
    assert first["document"]["requests"]["completed"] == 12
    assert first["predicted"]["p95_ttft_ms"]["value"] > 0
    assert {trial["fidelity"] for trial in tuned["trials"]} <= {"probed", "simulated"}


def test_a_plan_that_was_slower_than_simulated_is_not_tried_again_with_other_caps(
    tiny: Path, profile: Profile
) -> None:
    """Its other settings would win next and fail alike."""
    model = fit_step_model(profile, ModelConfig.from_dir(tiny))
    hopeful = replace(model, serving_factor=1e-9, serving=ServingCost(), host=NO_COST)
    spec = TuningSpec(
        model_dir=str(tiny),
        num_devices=2,
        workload="poisson:rate=100,input=48,output=8,requests=8",
        sla="p95_tpot_ms<=0.001",  # no machine does this
        trials=1,
        probe_requests=8,
        seed=1,
    )
    report = tune(spec, cost_model=json.loads(json.dumps(hopeful.to_json()))).to_json()
    plans = [confirmation["settings"]["plan"] for confirmation in report["confirmations"]]
    assert len(plans) > 1
    assert len(plans) == len({json.dumps(plan, sort_keys=True) for plan in plans})
    assert all(confirmation["log_slower"] > 0 for confirmation in report["confirmations"])
