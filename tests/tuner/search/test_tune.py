from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.models.create import create_model
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Caps, Settings
from policies.errors import PolicyInputError
from policies.schedule import Schedule
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.search.feasibility import as_held, engine_config
from tuner.search.prepare import prepare
from tuner.search.served import server_command
from tuner.search.spec import TuningSpec
from tuner.search.trial_run import run_trial
from tuner.search.trials import TrialRecord, TrialState
from tuner.search.tune import tune
from tuner.spec.errors import TunerError
from tuner.step_model.fit import fit_step_model

WORKLOAD = "gamma:rate=6,cv=2,input=1024,output=64,requests=24"


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of a 70B model, without its weights."""
    folder = tmp_path_factory.mktemp("models") / "large"
    create_model(folder, preset="llama-3.1-70b")
    return folder


@pytest.fixture(scope="module")
def spec(large_model: Path) -> TuningSpec:
    return TuningSpec(
        model_dir=str(large_model),
        num_devices=4,
        workload=WORKLOAD,
        sla="p95_ttft_ms<=4000,p95_tpot_ms<=120",
        trials=5,
        seed=3,
        hardware="4xh200",
    )


@pytest.fixture(scope="module")
def document(spec: TuningSpec) -> dict[str, Any]:
    return tune(spec).to_json()


def without_seconds(document: Any) -> Any:
    """Everything but how long it took."""
    if isinstance(document, dict):
        return {k: without_seconds(v) for k, v in document.items() if k != "seconds"}
    if isinstance(document, list):
        return [without_seconds(v) for v in document]
    return document


def test_the_report_recommends_with_fidelity_interval_and_reason(document: dict[str, Any]) -> None:
    found = document["recommendation"]
    assert found["fidelity"] == "simulated"
    assert found["measured"] is None
    assert found["reason"]
    interval = found["interval"]["simulated"]["p95_ttft_ms"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert found["predicted"]["ttft_ms"]["p95"] == pytest.approx(interval["value"])
    assert "devices" in found["explanation"]
    assert 0 <= found["sla_probability"] <= 1


def test_the_report_is_json_and_holds_what_other_programs_read(document: dict[str, Any]) -> None:
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["seed"] == 3
    assert again["sla"] == "p95_ttft_ms<=4000,p95_tpot_ms<=120"
    assert again["workload"]["rows"] == 24
    assert len(again["trials"]) == 5
    assert set(again["recommendation"]) >= {
        "settings", "fidelity", "predicted", "measured", "reason",
    }  # fmt: skip
    assert Schedule.from_json(again["schedule"]).bands
    assert any("uncalibrated" in warning for warning in again["warnings"])


def test_trial_0_is_what_one_would_start_with_vllm(document: dict[str, Any]) -> None:
    """Tensor parallelism over all devices, and its default caps on an H200."""
    settings = TrialRecord.from_json(document["trials"][0]).settings
    assert settings.plan == ParallelPlan(tp=4)
    assert settings.caps == Caps(max_num_seqs=1024, max_num_batched_tokens=8192)
    assert document["baseline"] == document["trials"][0]


def test_the_gain_over_trial_0_is_told_on_fresh_draws_of_both(document: dict[str, Any]) -> None:
    fresh = document["fresh_draws"]
    assert fresh["fidelity"] == "simulated"
    assert fresh["runs"]["winner"]["settings"] == document["recommendation"]["settings"]
    assert fresh["runs"]["baseline"]["settings"] == document["baseline"]["settings"]
    gain = fresh["gain"]["goodput_rps_per_device"]
    assert gain["low"] <= gain["share"] <= gain["high"]
    assert gain["share"] > 0, "fewer devices do"
    assert [row["level"] for row in document["costs"]] == ["predicted", "simulated"]
    assert document["budget"] is None


def test_ranks_that_quantise_are_tuned_by_step_times_of_such_ranks(tmp_path: Path) -> None:
    create_model(tmp_path / "tiny", preset="tiny", seed=1)
    spec = TuningSpec(
        model_dir=str(tmp_path / "tiny"),
        num_devices=1,
        workload="poisson:rate=5,input=64,output=8,requests=20",
        sla="p95_ttft_ms<=60000",
        trials=1,
        quantization=WeightFormat.W8A8,
        is_live=False,
    )
    fitted = replace(fit_step_model(made_up_profile(), SMALL), weights="w8a8")
    report = tune(spec, cost_model=fitted.to_json())
    assert report.recommendation is not None
    (launch,) = report.recommendation.launch
    assert " --quantization w8a8" in str(launch.command)
    assert "fp32 with w8a8 weights on this machine" in str(report.title)
    document = json.loads(json.dumps(report.to_json()))
    assert TuningSpec.from_json(document["spec"]) == spec
    plain = replace(fitted, weights="plain").to_json()
    with pytest.raises(TunerError, match="plain weights, and this engine's are w8a8"):
        tune(spec, cost_model=plain)


def test_quantised_ranks_have_room_for_what_plain_ones_do_not(tmp_path: Path) -> None:
    """The weights are counted as they are held."""
    create_model(tmp_path / "tiny", preset="tiny", seed=1)
    spec = TuningSpec(
        model_dir=str(tmp_path / "tiny"), num_devices=1, workload=WORKLOAD, sla="p95_ttft_ms<=1000"
    )
    model = ModelConfig.from_dir(spec.model_path)
    held = {}
    for form in (None, WeightFormat.W8A8):
        asked = replace(spec, quantization=form)
        found = as_held(asked, engine_config(asked, model, None), model)
        held[form] = found.weight_bytes_per_rank(ParallelPlan(), DType.FLOAT32)
    assert held[WeightFormat.W8A8] < 0.6 * held[None]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hardware": "4xh200"}, "described hardware"),
        ({"engine": "vllm"}, "its own command"),
    ],
)
def test_nothing_is_quantised_where_ranks_are_not_ours(
    large_model: Path, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(TunerError, match=told):
        TuningSpec(
            model_dir=str(large_model),
            num_devices=4,
            workload=WORKLOAD,
            sla="p95_ttft_ms<=4000",
            quantization=WeightFormat.INT8,
            **changes,
        )


def test_plans_that_do_not_fit_are_pruned_before_a_trial_with_the_numbers(
    document: dict[str, Any],
) -> None:
    pruned = {entry["plan"]: entry["reasons"][0] for entry in document["pruned"]}
    assert "GB of weights per rank" in pruned["tp=1"]
    assert "64 query heads do not divide by sp*tp = 1*3 = 3" in pruned["tp=3"]
    tried = {str(TrialRecord.from_json(trial).settings.plan) for trial in document["trials"]}
    assert not tried & set(pruned)


@pytest.mark.slow  # the next one has all but the first two trials again
def test_the_same_seed_gives_the_same_report(spec: TuningSpec, document: dict[str, Any]) -> None:
    assert without_seconds(tune(spec).to_json()) == without_seconds(document)


def test_a_job_resumed_from_its_trials_ends_as_if_undisturbed(
    spec: TuningSpec, document: dict[str, Any]
) -> None:
    stored = [TrialRecord.from_json(trial) for trial in document["trials"][:2]]
    assert without_seconds(tune(spec, trials=stored).to_json()) == without_seconds(document)


def test_a_cancelled_job_keeps_its_finished_trials(spec: TuningSpec) -> None:
    finished: list[str] = []
    report = tune(
        spec,
        on_event=lambda event: finished.append(event.kind),
        is_cancelled=lambda: finished.count("trial") >= 2,
    )
    assert len(report.trials) == 2
    assert report.recommendation is not None


def test_an_sla_nobody_can_meet_names_what_binds_and_what_relaxing_would_take(
    spec: TuningSpec,
) -> None:
    document = tune(replace(spec, sla="p95_ttft_ms<=1,p95_tpot_ms<=120", trials=3)).to_json()
    assert document["recommendation"] is None
    assert document["infeasible"]["binding"] == "p95_ttft_ms<=1"
    prices = {r["constraint"]: r["price"] for r in document["infeasible"]["relaxations"]}
    assert prices["p95_ttft_ms<=1"] > 1
    pruned = [t for t in document["trials"][1:] if t["state"] == "pruned"]
    assert pruned
    assert "at best" in pruned[0]["reason"]


def test_a_trial_says_what_it_tried_and_what_simulation_expected(spec: TuningSpec) -> None:
    with prepare(spec) as context:
        trial = run_trial(context, 0, [])
    assert trial.state is TrialState.COMPLETE
    assert trial.predicted["p95_ttft_ms"] == trial.metrics["p95_ttft_ms"]
    assert trial.reason.startswith(("meets the SLA with headroom ", "misses ", "too close: "))
    assert trial.reason.endswith("; simulated on 4xh200")


def test_the_winner_can_run_once_more_in_real_time(spec: TuningSpec) -> None:
    short = "poisson:rate=20,input=256,output=8,requests=8"
    paced = replace(spec, workload=short, trials=1, probe_paced=True)
    found = tune(paced).to_json()["recommendation"]
    assert found["fidelity"] == "simulated"
    assert found["paced"]["fidelity"] == "simulated"
    assert found["paced"]["requests"]["completed"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": "4xb999"}, "h200"),
        ({"num_devices": 9}, "9 devices asked for"),
        ({"num_devices": 1}, "no plan on up to 1 device can run"),
        ({"workload": "azure:/no/such/file.csv"}, "/no/such/file.csv"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_before_any_trial(
    spec: TuningSpec, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TunerError, match=message):
        prepare(replace(spec, **change))


def test_a_spec_checks_itself(spec: TuningSpec) -> None:
    with pytest.raises(PolicyInputError):
        replace(spec, sla="fast please")
    with pytest.raises(TunerError, match="trials=0"):
        replace(spec, trials=0)
    with pytest.raises(TunerError, match="unknown key 'trails'"):
        TuningSpec.from_json(spec.to_json() | {"trails": 3})
    assert TuningSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_plan_that_fits_under_smaller_caps_alone_is_searched_and_the_usual_ones_fail() -> None:
    spec = TuningSpec(
        model_dir="qwen2.5-72b",
        num_devices=1,
        workload="poisson:rate=1,input=256,output=8,requests=20",
        sla="p95_ttft_ms<=5000",
        trials=2,
        hardware="1xh100",
        dtype="fp8",
    )
    found = tune(spec).to_json()
    assert found["trials"][0]["state"] == "failed"
    assert "lower max_num_batched_tokens" in found["trials"][0]["reason"]
    bands = Schedule.from_json(found["schedule"]).bands
    tried = [found["recommendation"]["settings"], *(band.settings.to_json() for band in bands)]
    for caps in (Caps(**settings["caps"]) for settings in tried):
        assert spec.node().memory(ParallelPlan(), caps=caps, needed_kv_tokens=264).reason is None


def test_a_server_that_trials_start_computes_in_the_formats_that_they_are_guided_by(
    spec: TuningSpec,
) -> None:
    asked = replace(
        spec,
        engine="vllm",
        engine_command=f"{sys.executable} -m nothing",
        backend="vllm,kv_cache_dtype=fp8",
        dtype="fp8",
    )
    node = asked.node()
    command = server_command(asked, engine_config(asked, node.model, node), node)
    words = command.words(Settings(), port=8000)
    told = dict(pairwise(words))
    assert (told["--quantization"], told["--kv-cache-dtype"]) == ("fp8", "fp8")
