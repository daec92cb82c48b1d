from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_limits

from engine.spec.modes import ENDS
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.steps import StepShape
from tests.tuner.profiles import made_up_profile, operator_rows, shapes, true_seconds
from tests.tuner.worlds import LLAMA_70B, SMALL
from tuner.profiling.profile import Profile, merged
from tuner.spec.errors import TunerError
from tuner.spec.machine import this_machine
from tuner.step_model.files import load_cost_model, read_cost_model, save_cost_model
from tuner.step_model.fit import conformal, fit_step_model
from tuner.step_model.model import StepModel
from tuner.step_model.residual import Residual
from tuner.step_model.terms import StepTerms
from tuner.step_model.timer import ScaledTimer


def seconds(model: StepModel, plan: str, shape: StepShape) -> float:
    return sum(model.timer(parse_plan(plan).plan, SMALL).stage_seconds(shape))


def bumpy(terms: StepTerms, shape: StepShape) -> float:
    """A machine on which steps of more than 100 tokens take twice what their operators take."""
    return true_seconds(terms, shape) * (2.0 if shape.num_tokens > 100 else 1.0)


@cache
def fitted() -> StepModel:
    """The model of the usual machine; fitting takes seconds, and nothing changes it."""
    return fit_step_model(made_up_profile(), SMALL)


@cache
def fitted_bumpy() -> StepModel:
    """The model of the machine of :func:`bumpy`."""
    return fit_step_model(made_up_profile(seconds=bumpy), SMALL)


def test_a_machine_whose_operators_add_up_is_fitted_closely() -> None:
    model = fitted()
    assert model.error.roofline_mape < 0.05
    assert model.error.plan_interval < 0.1
    assert model.serving_factor == pytest.approx(1.1, rel=0.03)


def test_a_slow_round_of_a_profile_weighs_as_one_of_several() -> None:
    """Not as the one that happened to be measured last, or as all that was measured."""
    slow = made_up_profile(seconds=lambda terms, shape: 1.3 * true_seconds(terms, shape))
    usual = fitted()
    mixed = fit_step_model(merged([made_up_profile(), slow, made_up_profile()]), SMALL)
    for shape in shapes():
        ratio = seconds(mixed, "tp=2", shape) / seconds(usual, "tp=2", shape)
        assert 1.04 < ratio < 1.16


def test_profiles_of_different_things_are_never_merged() -> None:
    with pytest.raises(TunerError, match=r"different dtype.*float32, bfloat16"):
        merged([made_up_profile(), replace(made_up_profile(), dtype="bfloat16")])


def test_plans_that_never_ran_are_predicted_from_their_operators() -> None:
    seen = fitted()
    blind = fit_step_model(made_up_profile(plans=("tp=1", "sp=2,shift")), SMALL)
    for shape in shapes():
        assert seconds(blind, "tp=2", shape) == pytest.approx(
            seconds(seen, "tp=2", shape), rel=0.15
        )


def test_without_any_pieces_the_operators_alone_give_a_model() -> None:
    model = fit_step_model(made_up_profile(plans=()), SMALL)
    assert model.fitted_plans == ()
    assert model.error.roofline_mape < 0.15


def test_a_longer_step_takes_longer_in_every_mode() -> None:
    timer = fitted().timer(ParallelPlan(sp=2, shift=True), SMALL)
    for mode in ENDS:
        times = [
            sum(timer.stage_seconds(shape)) for shape in shapes(mode) if shape.num_prefill_tokens
        ]
        assert times == sorted(times)


def test_a_residual_is_active_where_it_helps_and_only_there() -> None:
    plain = fitted()
    bump = fitted_bumpy()
    assert bump.error.is_residual_active
    assert bump.error.residual_mape is not None
    assert bump.error.residual_mape < bump.error.roofline_mape
    assert plain.residual is None or plain.error.residual_mape < plain.error.roofline_mape


def test_far_from_its_data_the_residual_is_silent() -> None:
    residual = fitted_bumpy().residual
    assert residual is not None
    inside = residual.low
    outside = tuple(high + 10 for high in residual.high)
    assert residual.factor(inside) != 1.0
    assert residual.factor(outside) == 1.0


def test_the_timer_is_the_same_after_json() -> None:
    for model in (fitted(), fitted_bumpy()):
        again = StepModel.from_json(json.loads(json.dumps(model.to_json())))
        assert again.id == model.id
        for plan in ("tp=1", "sp=2,shift", "pp=2"):
            for shape in shapes():
                assert seconds(again, plan, shape) == seconds(model, plan, shape)


def test_the_same_profile_and_seed_give_the_same_model() -> None:
    one, two = (fit_step_model(made_up_profile(seconds=bumpy), SMALL, seed=4) for _ in range(2))
    assert one.coefficients == two.coefficients
    assert one.residual == two.residual


def test_a_profile_survives_json() -> None:
    profile = made_up_profile()
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_damaged_documents_are_refused_with_the_part() -> None:
    document = fitted().to_json()
    with pytest.raises(TunerError, match="step-model/v9"):
        StepModel.from_json(document | {"schema": "step-model/v9"})
    with pytest.raises(TunerError, match="serving_factor"):
        StepModel.from_json(json.loads(json.dumps(document | {"serving_factor": "fast"})))
    with pytest.raises(TunerError, match="gemms"):
        Profile.from_json(json.loads(json.dumps(operator_rows().to_json() | {"gemms": [1]})))


def test_another_model_than_the_profiled_one_is_named() -> None:
    model = fitted()
    assert model.check_model(SMALL) is None
    warning = model.check_model(LLAMA_70B)
    assert warning is not None
    assert "num_layers 4 -> 80" in warning


def test_the_newest_model_of_this_machine_is_found_and_a_missing_one_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    with pytest.raises(TunerError, match="gearshift profile"):
        load_cost_model(None, SMALL)
    model = fitted()
    path = save_cost_model(model)
    with pytest.raises(TunerError, match="no cost model of this machine"):
        load_cost_model(None, SMALL)  # it is another machine's
    on_gpu = replace(model, machine=this_machine("cuda", threads_per_rank=2))
    save_cost_model(on_gpu)
    with pytest.raises(TunerError, match=rf"{on_gpu.id} \(cuda, 2 threads per rank\)"):
        load_cost_model(None, SMALL)  # which of them is asked about nobody knows
    assert load_cost_model(str(path), SMALL) == load_cost_model(model.id, SMALL)


def test_a_model_of_other_weights_is_never_taken_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARSHIFT_DATA_DIR", str(tmp_path))
    here = replace(fitted(), machine=this_machine("cpu"))
    rounded = replace(here, weights="int8")
    path = save_cost_model(rounded)
    assert StepModel.from_json(json.loads(path.read_text())).id == rounded.id
    assert load_cost_model(None, SMALL, weights="int8") == rounded
    with pytest.raises(TunerError, match=f"weights are plain.*int8 weights .{rounded.id}"):
        load_cost_model(None, SMALL, weights="plain")
    assert load_cost_model(rounded.id, SMALL, weights="plain") == rounded  # quantised at its load
    plain = replace(here, weights="plain")
    save_cost_model(plain)
    assert load_cost_model(None, SMALL, weights="plain") == plain
    with pytest.raises(TunerError, match="plain weights, and this engine's are w8a8"):
        load_cost_model(plain.id, SMALL, weights="w8a8")
    with pytest.raises(TunerError, match="int8 weights, and this engine's are plain"):
        rounded.refuse_other("plain")


def test_a_profile_file_is_fitted_when_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(made_up_profile().to_json()))
    assert read_cost_model(path, SMALL).served_plans == ("tp=1",)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(TunerError, match="neither"):
        read_cost_model(tmp_path / "other.json", SMALL)


def test_conformal_half_widths_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    covered = [abs(rng.normal()) <= conformal(np.abs(rng.normal(size=60))) for _ in range(2000)]
    assert np.mean(covered) >= 0.89


def test_the_pieces_of_a_step_add_up_to_it() -> None:
    timer = fitted_bumpy().timer(ParallelPlan(tp=2), SMALL)
    for shape in shapes():
        parts = timer.breakdown(shape)
        assert parts.forward_s == pytest.approx(sum(timer.stage_seconds(shape)))
        assert parts.exposed_s == timer.host_seconds(shape)
        assert parts.communication_s > 0


def test_a_scaled_timer_scales_everything() -> None:
    timer = fitted().timer(ParallelPlan(pp=2), SMALL)
    slow = ScaledTimer(timer, 1.5)
    shape = shapes()[3]
    assert slow.stage_seconds(shape) == pytest.approx([1.5 * s for s in timer.stage_seconds(shape)])
    assert slow.host_seconds(shape) == pytest.approx(1.5 * timer.host_seconds(shape))


def test_a_residual_box_has_one_bound_per_feature() -> None:
    residual = fitted_bumpy().residual
    assert isinstance(residual, Residual)
    assert len(residual.low) == len(residual.high) == 10


def test_a_fit_starts_no_threads_where_several_are_allowed() -> None:
    """They would wait for each other, and for whatever else the cores do."""
    process = psutil.Process()
    profile = made_up_profile()
    with threadpool_limits(3, user_api="openmp"):
        before = process.num_threads()
        assert fit_step_model(profile, SMALL).residual == fitted().residual
        assert process.num_threads() == before
