"""``python -m tuner.calibration.block_scaled``: the law of block-scaled products, from published
times of vLLM's CUTLASS kernel on an H100, and how it does on shapes that it never saw.

Both tables are measurements that vLLM's developers published (Apache-2.0). ``FITTED`` are of the
kernel alone (benchmarks/kernels/deepgemm, 2025-02); its two shortest calls are left out: they took
the same time at half the bytes, so the host's launches were timed. ``HELD_OUT`` is another shape of
another version, with the pass that rounds activations (pull request 23280, 2025-09).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tuner.calibration.systems import peaks
from tuner.hardware import parse_hardware
from tuner.hardware.block_scaled import BLOCK_SCALED, BlockScaledLaw
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import FloatArray, gemm_work

DEVICE, FORMAT = "h100", "float8"
US, TERA = 1e-6, 1e12
# What a law may be off by before a row counts less.
ROBUST_LOG = 0.1
# m, n, k, microseconds.
FITTED = (
    (8, 4096, 7168, 34.6), (8, 7168, 18432, 78.9), (8, 18432, 7168, 81.2),
    (64, 4096, 7168, 36.9), (64, 7168, 18432, 87.4), (64, 18432, 7168, 85.0),
    (64, 7168, 16384, 77.9), (128, 4096, 7168, 39.1), (128, 7168, 18432, 93.7),
    (128, 18432, 7168, 85.7), (1024, 4096, 7168, 99.7), (1024, 18432, 7168, 331.3),
    (2048, 4096, 7168, 198.3), (4096, 4096, 7168, 392.2),
)  # fmt: skip
# m, n, k, TFLOP/s.
HELD_OUT = (
    (1, 2112, 7168, 0.893), (16, 2112, 7168, 13.94), (64, 2112, 7168, 55.79),
    (128, 2112, 7168, 106.5), (256, 2112, 7168, 192.5), (512, 2112, 7168, 322.3),
    (1024, 2112, 7168, 350.6), (2048, 2112, 7168, 426.6), (4096, 2112, 7168, 456.9),
    (8192, 2112, 7168, 489.7),
)  # fmt: skip


def fitted_rows() -> tuple[FloatArray, FloatArray]:
    """Shapes f8[R, 3] and seconds f8[R] that the law is fitted on."""
    rows = np.array(FITTED)
    return rows[:, :3], rows[:, 3] * US


def held_out_rows() -> tuple[FloatArray, FloatArray]:
    """Shapes and seconds that it never saw."""
    rows = np.array(HELD_OUT)
    return rows[:, :3], 2.0 * rows[:, :3].prod(axis=1) / (rows[:, 3] * TERA)


def law_seconds(law: BlockScaledLaw, shapes: FloatArray) -> FloatArray:
    """f8[R] of products of ``shapes`` on the device that was timed."""
    device = parse_hardware(DEVICE).device
    m, n, k = shapes.T
    plain_s, sms = _one_scale_s(device, shapes), device.num_sms
    return law.seconds(plain_s, m=m, n=n, k=k, num_sms=sms, clock_hz=device.clock_hz)


def fit_block_scaled() -> BlockScaledLaw:
    """Robust least squares of the log error."""
    shapes, seconds = fitted_rows()

    def law(x: npt.NDArray[np.float64]) -> BlockScaledLaw:
        return replace(BLOCK_SCALED, slowdown=float(x[0]), piece_clocks=1e3 * float(x[1]))

    def errors(x: npt.NDArray[np.float64]) -> FloatArray:
        return np.asarray(np.log(law_seconds(law(x), shapes) / seconds))

    return law(least_squares(errors, (1.5, 1.0), loss="soft_l1", f_scale=ROBUST_LOG).x)


def _one_scale_s(device: DeviceSpec, shapes: FloatArray) -> FloatArray:
    assert device.curves is not None, f"{DEVICE} is calibrated"
    m, n, k = shapes.T
    work = gemm_work(peaks(device, FORMAT), m, n, k, operand_bytes=1)
    return device.curves.gemm[FORMAT].seconds(work)


def main() -> None:
    law = fit_block_scaled()
    print(law)
    for name, (shapes, seconds) in (("fitted", fitted_rows()), ("held out", held_out_rows())):
        errors = np.abs(law_seconds(law, shapes) / seconds - 1)
        print(f"{name}: median error {np.median(errors):.1%}, largest {errors.max():.1%}")


if __name__ == "__main__":
    main()
