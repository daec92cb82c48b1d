from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuner.calibration.worlds import SYSTEM, write_world
from tuner.calibration.systems import Measured, measured_gemm
from tuner.calibration.transfer import Scales, by_data_sheet, calibrated
from tuner.hardware.curves import OperatorCurve, Roofline
from tuner.hardware.device import load_data_sheet

H100, A100 = load_data_sheet("h100"), load_data_sheet("a100")
CURVE = OperatorCurve(
    roofline=Roofline(call_s=4e-6, flop_share=0.8, byte_share=0.85, sharpness=3.0)
)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    data: Path = write_world(tmp_path_factory.mktemp("silicon"))
    return measured_gemm(data, SYSTEM, A100, "bf16")


def test_fixed_costs_take_as_many_clocks_on_a_slower_device() -> None:
    carried = by_data_sheet(CURVE, H100, A100).roofline
    assert carried.call_s == pytest.approx(4e-6 * H100.clock_hz / A100.clock_hz)
    assert (carried.flop_share, carried.byte_share) == (0.8, 0.85)


def test_a_few_calls_tell_how_far_a_device_is_from_the_carried_curve(products: Measured) -> None:
    other = Scales(call=1.3, flop=0.9, byte=1.2).apply(CURVE)
    timed = replace(products, seconds=other.seconds(products.work))
    found = calibrated(CURVE, timed, num_calls=24)
    before, after = (
        np.median(np.abs(np.log(curve.seconds(timed.work) / timed.seconds)))
        for curve in (CURVE, found)
    )
    assert after < 0.03
    assert before > 3 * after


def test_calls_that_agree_change_nothing(products: Measured) -> None:
    timed = replace(products, seconds=CURVE.seconds(products.work))
    found = calibrated(CURVE, timed, num_calls=12)
    assert found.seconds(timed.work) == pytest.approx(timed.seconds, rel=1e-3)
