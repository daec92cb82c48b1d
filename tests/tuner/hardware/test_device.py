from __future__ import annotations

import json
from typing import Any

import pytest

from tuner.hardware import Precision, list_devices, parse_hardware
from tuner.hardware.device import DEVICES, DeviceSpec
from tuner.spec.errors import TunerError

FITTED = ("a100", "h100", "h200")
CARRIED = ("a100-40gb",)
FROM_DATA_SHEETS = (
    *("b200", "gb200", "h20", "h100-pcie", "l40s", "l4", "a10g"),
    *("rtx4090", "rtx6000ada", "rtxpro6000", "mi300x", "mi325x"),
)
EFFICIENCIES = ("gemm", "attention", "memory", "usable_memory")


def data_sheet(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((DEVICES.folder / f"{name}.json").read_text())
    return raw


def test_a_count_and_a_name_make_hardware() -> None:
    hardware = parse_hardware("8xh200")
    assert str(hardware) == "8xh200"
    assert hardware.device.memory_bytes == pytest.approx(139.81 * 2**30, rel=1e-3)
    assert hardware.device.calibration == "calibrated for bf16, fp16, fp8"


def test_every_description_can_be_read() -> None:
    assert {*FITTED, *CARRIED, *FROM_DATA_SHEETS} == set(list_devices())
    assert {parse_hardware(name).count for name in list_devices()} == {1}


@pytest.mark.parametrize("name", FROM_DATA_SHEETS)
def test_what_is_from_a_data_sheet_names_it_and_is_trusted_less_than_what_was_fitted(
    name: str,
) -> None:
    device = parse_hardware(name).device
    assert device.calibration == "uncalibrated"
    assert "data sheet" in device.source or "published" in device.source or "paper" in device.source
    assert "nothing fitted" in device.source
    assert device.interval > max(parse_hardware(other).device.interval for other in FITTED)


def test_the_same_processors_with_another_memory_reach_the_same_shares_of_their_peaks() -> None:
    device, fitted = (parse_hardware(name).device for name in ("a100-40gb", "a100"))
    assert device.curves == fitted.curves
    assert device.calibration == "uncalibrated, by the curves of a100"
    assert device.estimated_from(Precision.BF16) == "those of a100"
    assert device.interval_for(Precision.BF16) > fitted.interval_for(Precision.BF16)
    for precision in (Precision.FP8, Precision.FP32):
        assert device.curves_for(precision) is None
        assert device.estimated_from(precision) is None


def test_nodes_may_be_used_in_part() -> None:
    hardware = parse_hardware("2x4xh200")
    assert (hardware.count, hardware.device.devices_per_node) == (8, 4)
    assert str(hardware) == "2x4xh200"
    assert parse_hardware(str(hardware)) == hardware
    assert parse_hardware("2x8xh200").device == parse_hardware("16xh200").device
    with pytest.raises(TunerError, match="a node of h200 has 8 devices"):
        parse_hardware("2x16xh200")
    with pytest.raises(TunerError, match="at most 16384"):
        parse_hardware("16384x8xh200")


@pytest.mark.parametrize("name", [*FITTED, *CARRIED, *FROM_DATA_SHEETS])
def test_narrower_formats_are_computed_in_proportion(name: str) -> None:
    """Dense peaks: a figure with sparsity among them would be twice what it should."""
    peaks = parse_hardware(name).device.dense_flops_per_s
    assert peaks["float16"] == peaks["bfloat16"] > peaks["float32"]
    if "float8" in peaks:
        assert peaks["float8"] == pytest.approx(2 * peaks["bfloat16"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "gb", "watts"),
    [
        *(("b200", 192, 1000), ("gb200", 200, 1200), ("h20", 103, 400), ("l40s", 51.5, 350)),
        *(("a10g", 25.8, 300), ("l4", 25.8, 72), ("mi300x", 206.2, 750), ("rtx4090", 25.8, 450)),
    ],
)
def test_memory_and_power_are_within_what_the_board_has(name: str, gb: float, watts: int) -> None:
    """The driver keeps a little of the memory to itself."""
    device = parse_hardware(name).device
    assert 0.9 * gb < device.memory_bytes / 1e9 <= gb
    assert device.power.compute_bound_w <= watts
    assert f"{watts:,} W" in device.power.source


def test_a_device_known_from_its_data_sheet_only_says_so_and_is_trusted_less() -> None:
    guessed, fitted = (parse_hardware(name).device for name in ("mi325x", "h200"))
    assert guessed.calibration == "uncalibrated"
    assert guessed.interval > fitted.interval


def test_formats_nobody_measured_are_not_called_calibrated() -> None:
    a100, h100 = (parse_hardware(name).device for name in ("a100", "h100"))
    assert a100.curves_for(Precision.FP8) is None
    assert h100.curves_for(Precision.FP8) is not None
    assert h100.curves_for(Precision.FP32) is None


@pytest.mark.parametrize("text", ["8xb999", "0xh200", "00xh200", "h200x8!", "", "8 h200"])
def test_unknown_hardware_is_refused_with_the_known_names(text: str) -> None:
    with pytest.raises(TunerError, match="h200"):
        parse_hardware(text)


@pytest.mark.parametrize("count", ["16385", str(2**70), "9" * 5000])
def test_more_devices_than_anybody_has_are_refused(count: str) -> None:
    with pytest.raises(TunerError, match="at most 16384 devices"):
        parse_hardware(f"{count}xh200")
    assert parse_hardware("016xh200").count == 16


def test_someone_who_wants_this_machine_is_told_how() -> None:
    with pytest.raises(TunerError, match=r"gearshift profile.*--cost-model"):
        parse_hardware("local")


def test_a_description_of_another_schema_is_refused() -> None:
    with pytest.raises(TunerError, match=r"x\.json: schema 'device/v9'"):
        DeviceSpec.from_json({"schema": "device/v9"}, where="x.json")


def test_a_description_with_a_missing_key_is_refused_by_name() -> None:
    raw = {key: value for key, value in data_sheet("mi325x").items() if key != "link"}
    with pytest.raises(TunerError, match=r"x\.json: key 'link' is missing"):
        DeviceSpec.from_json(raw, where="x.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bytes": "big"}, "memory_bytes: Expected `float`, got `str`"),
        ({"memory_bytes": -1.0}, "memory_bytes=-1: must be above 0"),
        ({"memory_byte": 1.0}, "unknown key 'memory_byte' .did you mean 'memory_bytes'"),
        ({"link": "nvlink44"}, "link: link 'nvlink44' is not known .did you mean 'nvlink4'"),
        ({"link": 4}, "link: Expected `object`, got `int`"),
        (
            {"dense_flops_per_s": {"bf16": 1e15}},
            "dense_flops_per_s: 'bf16' is not known .did you mean 'bfloat16'",
        ),
        ({"dense_flops_per_s": {"float16": 1e15}}, "dense_flops_per_s: 'bfloat16' is missing"),
        ({"dense_flops_per_s": {"bfloat16": 0.0}}, "dense_flops_per_s: bfloat16=0"),
        ({"power": {"idle_w": 5}}, "key 'power.memory_bound_w' is missing"),
        ({"power": {"idel_w": 5}}, "unknown key 'power.idel_w' .did you mean 'idle_w'"),
        ({"efficiency": dict.fromkeys(EFFICIENCIES, 1.5)}, "gemm=1.5: must be above 0 and at"),
        ({"interval": float("nan")}, "interval=nan"),
        ({"curves": {}}, "curves: they stand in a file of their own"),
    ],
)
def test_a_wrong_description_names_the_file_and_the_field(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TunerError, match=rf"mine\.json: {message}"):
        DeviceSpec.from_json(data_sheet("mi325x") | changes, where="mine.json")


def test_a_wrong_device_or_link_suggests_the_nearest() -> None:
    with pytest.raises(TunerError, match=r"'mi325' is not known .did you mean 'mi325x'"):
        parse_hardware("8xmi325")
    with pytest.raises(TunerError, match=r"'pcie6' is not known .did you mean 'pcie\d'"):
        parse_hardware("8xh200@pcie6")
