"""The whole fit, from files to a device's curves, on an invented device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.tuner.calibration.worlds import LATENCY_MS, LINK_BYTES_PER_MS, SYSTEM, write_world
from tests.tuner.worlds import LLAMA_70B
from tuner.calibration.fit import fit_system, main
from tuner.calibration.layer_errors import DeviceData, interpolating, unseen_degree
from tuner.calibration.layers import LayerShape, find_layer_calls, is_all_reduce
from tuner.calibration.links import read_series
from tuner.calibration.systems import measured_decode, measured_gemm, measured_prefill
from tuner.hardware import Precision, RooflineTimer
from tuner.hardware.curves import IN_NODE, Curves
from tuner.hardware.device import load_data_sheet
from tuner.work.counts import CollectiveKind


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("silicon"))


@pytest.fixture(scope="module")
def curves(data: Path) -> Curves:
    return fit_system(data, SYSTEM, seed=0)


@pytest.fixture(scope="module")
def device_data(data: Path) -> DeviceData:
    device = load_data_sheet("h100")
    return DeviceData(
        device=device,
        gemm=measured_gemm(data, SYSTEM, device, "bf16"),
        prefill=measured_prefill(data, SYSTEM, device),
        decode=measured_decode(data, SYSTEM, device),
        all_reduces=[s for s in read_series(data, SYSTEM)[0] if is_all_reduce(s)],
    )


def test_curves_are_the_same_after_a_round_trip(curves: Curves) -> None:
    again = Curves.from_json(json.loads(json.dumps(curves.to_json())), where="x")
    assert again == curves


def test_the_same_data_and_seed_give_the_same_curves(data: Path, curves: Curves) -> None:
    assert fit_system(data, SYSTEM, seed=0) == curves


def test_a_lawful_device_is_learned_well(curves: Curves) -> None:
    assert set(curves.held_out) == {"gemm.bfloat16", "prefill", "decode", "collectives", "links"}
    assert all(error.median < 0.1 for error in curves.held_out.values())


def test_collectives_keep_launch_and_place_apart(curves: Curves) -> None:
    kind = CollectiveKind.ALL_REDUCE.value
    graph, eager = (curves.collective(kind, via, 4, IN_NODE) for via in ("graph", "eager"))
    assert graph.seconds(256) == pytest.approx(LATENCY_MS / 1e3, rel=0.15)
    assert eager.seconds(256) == pytest.approx(5 * LATENCY_MS / 1e3, rel=0.15)
    assert graph.seconds(2e8) == pytest.approx(2e8 / LINK_BYTES_PER_MS / 1e3, rel=0.15)


def test_fitted_curves_time_a_step(curves: Curves) -> None:
    from dataclasses import replace

    device = replace(load_data_sheet("h100"), curves=curves)
    timer = RooflineTimer(device, LLAMA_70B, ParallelPlan(tp=8), Precision.BF16)
    shape = StepShape(num_seqs=8, num_decode_tokens=8, decode_context_tokens=8000, num_sampled=8)
    weights_s = 2 * LLAMA_70B.num_params / 8 / 2.5e12
    assert weights_s < sum(timer.stage_seconds(shape)) < 2 * weights_s


def test_layers_are_those_whose_every_call_was_measured(device_data: DeviceData) -> None:
    calls = device_data.calls
    assert calls
    assert {call.kind for call in calls} == {"prefill", "decode"}
    shape = LayerShape(hidden=4096, heads=32, kv_heads=8, ffn=8192)
    call = next(c for c in calls if c.shape == shape and c.tp == 8)
    pairs = device_data.gemm.columns.values[list(call.gemms), 1:]
    assert [tuple(pair) for pair in pairs] == list(shape.weights(8))
    assert call.all_reduce >= 0
    assert (
        find_layer_calls(
            device_data.gemm, device_data.prefill, device_data.decode, device_data.all_reduces[:1]
        )
        != calls
    )


def test_layer_errors_are_judged_out_of_sample(device_data: DeviceData) -> None:
    for errors in (interpolating(device_data), unseen_degree(device_data)):
        assert len(errors.logs) == len(errors.calls) > 0
        assert np.median(np.abs(errors.logs)) < 0.1


def test_a_folder_without_the_files_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "a100_sxm_gemm_bf16.csv.gz: no such file" in capsys.readouterr().err
