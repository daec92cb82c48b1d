"""A device's curves from another device's: by the data sheets of both, and a few calls if there are
any.

Variables of the fit are ratios to the device's peaks and multiprocessors already. Fixed costs
(starting, filling and draining a kernel) take as many clocks on both devices. A few timed calls
tell how much of its peaks a device reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from tuner.calibration.systems import Measured
from tuner.hardware.curves import OperatorCurve, SizeCurve
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import FloatArray, Work

TURN_S = 1e-4  # the size of call, in seconds at the peaks, whose factor the slope leaves
SIZES = (-3.0, 5.0)  # logs of sizes beyond which the slope is not trusted
# Spreads: of a carried curve's errors, of the logs of scales, of the slope.
CURVE_LOG, SCALE_LOG, SLOPE = 0.1, 0.25, 0.03


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How many times longer a call's parts take than the curve says."""

    call: float = 1.0
    flop: float = 1.0
    byte: float = 1.0

    def apply(self, curve: OperatorCurve) -> OperatorCurve:
        old = curve.roofline
        roofline = replace(
            old,
            call_s=old.call_s * self.call,
            flop_share=old.flop_share / self.flop,
            byte_share=old.byte_share / self.byte,
        )
        return replace(curve, roofline=roofline)


def by_data_sheet(curve: OperatorCurve, theirs: DeviceSpec, ours: DeviceSpec) -> OperatorCurve:
    """The curve of ``theirs`` for ``ours``: fixed costs in clocks, shares of peaks as they are."""
    return Scales(call=theirs.clock_hz / ours.clock_hz).apply(curve)


def collective_by_data_sheet(curve: SizeCurve, theirs: DeviceSpec, ours: DeviceSpec) -> SizeCurve:
    """As :func:`by_data_sheet`, with the bandwidth of the link of ``ours``."""
    ratio = theirs.link.bytes_per_s_per_direction / ours.link.bytes_per_s_per_direction
    in_clocks = replace(curve, call_s=curve.call_s * theirs.clock_hz / ours.clock_hz)
    return in_clocks.slowed(ratio)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A carried curve with its parts scaled, and a factor that changes with the size of a call."""

    curve: OperatorCurve
    slope: float

    def seconds(self, work: Work) -> FloatArray:
        sizes = np.clip(np.log((work.flop_s + work.byte_s) / TURN_S), *SIZES)
        return np.asarray(self.curve.seconds(work) * np.exp(self.slope * sizes))


def calibrated(
    curve: OperatorCurve, measured: Measured, *, num_calls: int, seed: int = 0
) -> Calibrated:
    """The curve fitted to ``num_calls`` calls of ``measured`` drawn at random: three scales and a
    slope, held to 1 and 0 by what devices are known to differ by."""
    is_timed = np.zeros(len(measured.seconds), dtype=np.bool_)
    rng = np.random.default_rng(seed)
    is_timed[rng.choice(len(is_timed), num_calls, replace=False)] = True
    known = measured.where(is_timed)

    def scaled(x: FloatArray) -> Calibrated:
        call, flop, byte = map(float, np.exp(x[:3]))
        scales = Scales(call=call, flop=flop, byte=byte)
        return Calibrated(curve=scales.apply(curve), slope=float(x[3]))

    def errors(x: FloatArray) -> FloatArray:
        logs = np.log(scaled(x).seconds(known.work) / known.seconds)
        return np.concatenate([logs / CURVE_LOG, x[:3] / SCALE_LOG, x[3:] / SLOPE])

    return scaled(least_squares(errors, np.zeros(4)).x)
